"""Columns on a common scale, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gp_rangeformer.regression.errors import TableError

_DIGITS = 1e4  # differences that float64 knows to fewer parts than this are not what was written
_EXACT_INTEGERS = 2.0**53


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and population standard deviation of k columns, float64, of k each; the deviation of a constant one is 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> Scaling:
        """:param columns: n x k, float64."""
        return cls(*moments(columns))

    def standardised(self, values: Tensor) -> Tensor:
        """t x k to t x k: a constant column becomes 0, whatever it is in ``values``."""
        return (values - self.mean) / torch.where(self.scale > 0, self.scale, torch.inf)

    def restored(self, values: Tensor) -> Tensor:
        """The inverse, to rounding."""
        return values.double() * self.scale + self.mean


def moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each column; the deviation of a constant column is exactly 0."""
    mean = columns.mean(dim=0)
    centred = columns - mean
    # In units of the largest deviation: squares of 1e-200 or 1e200 leave the range of float64.
    spread = centred.abs().amax(dim=0)
    scale = spread * (centred / spread).square().mean(dim=0).sqrt()
    # The mean of equal numbers is off by rounding, so a constant column shows in its range, not in its deviation.
    eps = torch.finfo(columns.dtype).eps
    constant = columns.amax(dim=0) - columns.amin(dim=0) <= 8 * eps * columns.abs().amax(dim=0)
    return mean, torch.where(constant, torch.zeros_like(scale), scale)


def check_digits(name: str, values: np.ndarray) -> None:
    """:raises TableError: numbers, float64, so large beside their differences that a part of those is lost, as in long
    integer keys; what differs by rounding alone is constant."""
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    spacing = float(np.spacing(largest))
    rounding = largest < _EXACT_INTEGERS and high - low <= 8 * spacing
    if high == low or rounding or high - low >= _DIGITS * spacing:
        return
    raise TableError(
        f"column {name!r} holds numbers near {low:.4g} that differ by {high - low:.3g} at most, and float64 tells "
        f"such numbers apart in steps of {spacing:.1g}: subtract a constant from them where the table is made"
    )
