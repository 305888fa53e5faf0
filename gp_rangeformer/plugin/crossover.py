"""Where GPyTorch's own code is as exact and faster, and where it is not as exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from jaxtyping import Float
from linear_operator import settings as host_settings
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.rangeformer.direct import Direct

# Points up to which a prediction of GPyTorch's takes less than one of this plug-in: at n = 100 it evaluates, factorises
# and solves within 2.4 to 3 ms, and a certificate takes another millisecond (float64, one thread; level at 500). Of a
# batch of four the host is a sixth faster at 500, and slower at 1000 (`gp-rangeformer bench small`).
# In float32, whose factorisations may need float64, fewer: there the host is faster by a third at 100 and 120 points.
POINTS, NARROW = 640, 150
# Shortest length-scales within which GPyTorch's distances are exact enough: differences of squared norms about the mean
# of the points that are asked for, off by some eps of the square of this. One point far out spoils those of all.
_REACH = 300.0


def host_predicts_as_fast(n: int, dtype: torch.dtype | None, device: torch.device | None) -> bool:
    """Whether predictions from ``n`` points are left to the host's Cholesky factorisation."""
    most = POINTS if dtype == torch.float64 else NARROW
    if device is None or n >= min(most, settings.min_size.value_on(device)):
        return False
    by_cholesky = host_settings.fast_computations.solves.off() or n <= (host_settings.max_cholesky_size.value() or 0)
    dense = settings.kernel_storage.value() != "tiles" and settings.process_group.value() is None
    return bool(by_cholesky) and dense and not isinstance(settings.solver.value(), Direct)


@dataclass(frozen=True)
class Reach:
    """How far from ``middle``, the first of a model's training points, others may be left to the host."""

    middle: Tensor
    limit: float
    parameters: tuple[Tensor, ...]  # the kernel's when it was measured

    @classmethod
    def of(cls, kernel: Kernel, points: Float[Tensor, "n d"]) -> Reach:
        parts: list[Any] = [part for part in torch.nn.Module.modules(kernel) if _has_lengthscale(part)]
        shortest = min((float(part.lengthscale.detach().amin()) for part in parts), default=math.inf)
        middle = points[:1].detach()
        limit = _REACH * shortest
        if limit < math.inf and _distance(points, middle) > limit:
            limit = 0.0  # so far out are training points themselves
        return cls(middle, limit, tuple(parameter.detach().clone() for parameter in _parameters(kernel)))

    def exceeded(self, x: Float[Tensor, "t d"]) -> bool:
        """Whether a prediction of ``x`` must not be left to the host: some are too far out."""
        return self.limit < math.inf and _distance(x, self.middle) > self.limit

    def describes(self, kernel: Kernel) -> bool:
        return all(map(torch.equal, self.parameters, _parameters(kernel)))


def _distance(x: Tensor, middle: Tensor) -> float:
    return float((x.detach() - middle).abs_().amax())


def _parameters(kernel: Kernel) -> Iterator[Tensor]:
    return torch.nn.Module.parameters(kernel)


def _has_lengthscale(part: Any) -> bool:
    return isinstance(part, Kernel) and bool(part.has_lengthscale) and part.lengthscale is not None
