"""Targets as the model has them, and how predictions lead back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Targets(NamedTuple):
    """``values``: n or n x q; ``mean`` and ``scale``, of every output: what ``values * scale + mean`` leads back by."""

    values: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


def targets_of(y: Any, normalise: bool) -> Targets:
    """In float64, also where the model has float32: they are centred first. One column is one output.

    :param y: n or n x q numbers.
    :param normalise: to mean zero and variance one; equal numbers become zeros.
    :raises ValueError: their mean or variance overflows.
    """
    values = np.asarray(y, np.float64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if not normalise:
        return Targets(values, np.zeros(values.shape[1:]), np.ones(values.shape[1:]))
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = values.mean(0), values.std(0)
    if not bool((np.isfinite(mean) & np.isfinite(deviation)).all()):
        raise ValueError("y is too large to be normalised, its variance is no number: scale it")
    rounding = 10 * np.finfo(np.float64).eps * np.abs(mean)
    scale = np.where(deviation > rounding, deviation, 1.0)
    return Targets((values - mean) / scale, mean, scale)


def for_outputs(spread: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    """Variances or covariances that all outputs share, times the scale of each, in a last axis of their own if there
    are several."""
    return spread * scale if scale.ndim == 0 else spread[..., np.newaxis] * scale
