"""Hyperparameters as scikit-learn counts them: by their logarithms, between bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from gpytorch.constraints import Interval
from torch import Tensor

# A start on a bound, or beyond, is moved inside by so much of a logarithm, or of the distance of the bounds.
_INSIDE = 0.01


class LogScale(Interval):
    """v = (e^u + lower) / (1 + e^u / upper) of a stored number u, which itself is free.

    In the middle of wide bounds u is log v, and near one of them v - lower, or upper - v, falls by a factor of e with
    every step of one. Without bounds (0 and infinity) u is log v everywhere. A module sees v^power.

    :param lower: of v, one for every number of the parameter or one for all; at least 0.
    :param upper: more than ``lower``, perhaps infinity.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self, lower: Tensor, upper: Tensor, power: int = 1) -> None:
        # Not enforced, in GPyTorch's words: whoever optimises takes the stored number as it is.
        super().__init__(-math.inf, math.inf, transform=None)
        self.power = power
        self.register_buffer("lowest", lower)
        self.register_buffer("highest", upper)

    def transform(self, tensor: Tensor) -> Tensor:
        return self.value(tensor) ** self.power

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        return self.stored(transformed_tensor ** (1 / self.power))

    def value(self, stored: Tensor) -> Tensor:
        """v in scikit-learn's units."""
        exponential = stored.exp()
        return (exponential + self.lowest) / (1 + exponential / self.highest)

    def stored(self, value: Tensor) -> Tensor:
        """u for a value between the bounds; -infinity for 0."""
        return (value - self.lowest).log() - (-value / self.highest).log1p()

    def inside(self, value: Tensor) -> Tensor:
        """The nearest value from which a fit can start."""
        low, high = self.lowest.log(), self.highest.log()
        margin = _INSIDE * (high - low).clamp_max(1.0)
        return value.log().clamp(low + margin, high - margin).exp()

    def __repr__(self) -> str:
        return f"LogScale({self.lowest.tolist()}, {self.highest.tolist()})"


def register(module: Any, name: str, value: Tensor, bounds: tuple[Tensor, Tensor], power: int, free: bool) -> None:
    """Give the parameter ``name`` of a GPyTorch module a :class:`LogScale`, and ``value``, in scikit-learn's units and
    of the parameter's shape; a value that is not inside the ``bounds`` is moved there."""
    raw: torch.nn.Parameter = getattr(module, f"raw_{name}")
    constraint = LogScale(*bounds, power)
    module.register_constraint(f"raw_{name}", constraint)
    with torch.no_grad():
        raw.copy_(constraint.stored(constraint.inside(value)))
    raw.requires_grad_(free)
