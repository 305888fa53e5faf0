"""Variances that rounding has made negative."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6  # of a prior variance


def not_negative(variance: NDArray[Any], prior: NDArray[Any]) -> NDArray[Any]:
    """Those below 0 as 0, with a warning where that is more than rounding."""
    if bool((variance < -_ROUNDING * prior).any()):
        warnings.warn(
            f"predicted variances as low as {float(variance.min()):.1e} became 0: the matrix is nearly singular, and a "
            "larger alpha makes predictions reliable",
            stacklevel=2,
        )
    return np.maximum(variance, 0)
