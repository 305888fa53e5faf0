"""Where GPyTorch's own code is as exact and faster, and where it is not as exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from jaxtyping import Float
from linear_operator import settings as host_settings
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.plugin.covered import parameters_of, parts_of
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.system.margins import factor_rounding

# Points up to which a prediction of GPyTorch's takes less than one of this plug-in: at n = 100 it evaluates, factorises
# and solves within 2.4 to 3 ms, and a certificate takes another millisecond (float64, one thread; level at 500). Of a
# batch of four the host is a sixth faster at 500, and slower at 1000 (`gp-rangeformer bench small`).
# In float32, whose factorisations may need float64, fewer: there the host is faster by a third at 100 and 120 points.
POINTS, NARROW = 640, 150
# And up to as many as FEW where a factorisation in float32 does: GPyTorch's first predictions take three quarters of
# the plug-in's time at 250 points, those of a model that is conditioned on more, two thirds (BoTorch's SingleTaskGP).
# Their errors are 1.8e-5 of the values there for 7.6e-6, where the bound of `factor_rounding` is 3e-4.
FEW = 320
_FAR_BELOW = 0.1  # of what a prediction may be off by
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


def float32_does(n: int, condition: float) -> bool:
    """Whether a factorisation in float32 is off by a tenth of what a prediction may be, at most: certificates take up
    to as long again as predictions that GPyTorch evaluates the kernel for, of a batch twice as long (16 of 200 points).
    Below ``FEW`` points, by all that it may be.

    :param condition: largest diagonal entry of A over the smallest noise.
    """
    allowed = settings.solver.value().prediction_tolerance * (1 if n < FEW else _FAR_BELOW)
    return factor_rounding(n, torch.float32, condition) <= allowed


@dataclass(frozen=True)
class Reach:
    """What decides whether a prediction may be left to the host: how far from ``middle``, the first of a model's
    training points, others are, and what a factorisation in float32 makes of A."""

    middle: Tensor
    limit: float
    parameters: tuple[Tensor, ...]  # the kernel's when it was measured
    condition: float  # largest diagonal entry of A over the smallest noise

    @classmethod
    def of(cls, kernel: Kernel, points: Float[Tensor, "n d"], condition: float = math.inf) -> Reach:
        parts: list[Any] = [part for part in parts_of(kernel) if _has_lengthscale(part)]
        shortest = min((float(part.lengthscale.detach().amin()) for part in parts), default=math.inf)
        middle = points[:1].detach()
        limit = _REACH * shortest
        if limit < math.inf and _distance(points, middle) > limit:
            limit = 0.0  # so far out are training points themselves
        return cls(middle, limit, tuple(parameter.detach().clone() for parameter in parameters_of(kernel)), condition)

    def exceeded(self, x: Float[Tensor, "t d"]) -> bool:
        """Whether a prediction of ``x`` must not be left to the host: some are too far out."""
        return self.limit < math.inf and _distance(x, self.middle) > self.limit

    def describes(self, kernel: Kernel) -> bool:
        return all(map(torch.equal, self.parameters, parameters_of(kernel)))


def _distance(x: Tensor, middle: Tensor) -> float:
    return float((x.detach() - middle).abs_().amax())


def _has_lengthscale(part: Any) -> bool:
    return isinstance(part, Kernel) and bool(part.has_lengthscale) and part.lengthscale is not None
