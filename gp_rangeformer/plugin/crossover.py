"""Where GPyTorch's own code is as exact and faster, and where it is not as exact."""

from __future__ import annotations

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


def beyond_reach(kernel: Kernel, points: Float[Tensor, "n d"], others: Float[Tensor, "t d"]) -> bool:
    """Whether a prediction of ``others`` from ``points`` must not be left to the host: some are too far out."""
    parts: list[Any] = [part for part in torch.nn.Module.modules(kernel) if _has_lengthscale(part)]
    shortest = [float(part.lengthscale.detach().amin()) for part in parts]
    if not shortest:
        return False
    middle = points[:1]
    reach = max(float((x - middle).abs().amax()) for x in (points.detach(), others.detach()))
    return reach > _REACH * min(shortest)


def _has_lengthscale(part: Any) -> bool:
    return isinstance(part, Kernel) and bool(part.has_lengthscale) and part.lengthscale is not None
