"""Where GPyTorch's own code is as exact and faster."""

from __future__ import annotations

import torch
from linear_operator import settings as host_settings

from gp_rangeformer import settings
from gp_rangeformer.rangeformer.direct import Direct

# Points up to which a prediction of GPyTorch's takes less than one of this plug-in: at n = 100 it evaluates, factorises
# and solves within 2.4 to 3 ms, and a certificate takes another millisecond (float64, one thread; level at 500). Of a
# batch of four the host is a sixth faster at 500, and slower at 1000 (`gp-rangeformer bench small`).
# In float32, whose factorisations may need float64, fewer: there the host is faster by a third at 100 and 120 points.
POINTS, NARROW = 640, 150


def host_predicts_as_fast(n: int, dtype: torch.dtype | None, device: torch.device | None) -> bool:
    """Whether predictions from ``n`` points are left to the host's Cholesky factorisation."""
    most = POINTS if dtype == torch.float64 else NARROW
    if device is None or n >= min(most, settings.min_size.value_on(device)):
        return False
    by_cholesky = host_settings.fast_computations.solves.off() or n <= (host_settings.max_cholesky_size.value() or 0)
    dense = settings.kernel_storage.value() != "tiles" and settings.process_group.value() is None
    return bool(by_cholesky) and dense and not isinstance(settings.solver.value(), Direct)
