"""Predictors of the next solution: those of the package, the best in hindsight, and least squares on a few rows.

All but `zero` and `span` are mixtures sum_i c_i X[t-i] + sum_j a_j Z[t-j], with Z = P^-1 R the corrections that the
residuals of the past suggest. What differs is how the coefficients are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.recycling.first_guess import extrapolate, least_squares
from gp_rangeformer.recycling.galerkin import galerkin
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.small_cores import to_host
from pretrain.experiments.predictor.replay import Past, Situation


def zero(situation: Situation) -> None:
    """No prediction."""


def previous(situation: Situation) -> Tensor:
    """X[t-1]."""
    return situation.past[0].solution


def linear(situation: Situation) -> Tensor | None:
    """2 X[t-1] - X[t-2], the package's default."""
    return extrapolate(tuple(past.solution for past in reversed(situation.past)))


def span(situation: Situation) -> tuple[Tensor, Tensor]:
    """Galerkin over the last two solutions: any matrix as coefficient, for a pass with 2 m columns."""
    basis = torch.cat([past.solution for past in situation.past[:2]], dim=1)
    return galerkin(situation.system, basis, situation.rhs)


@dataclass(frozen=True)
class Damped:
    """2 (X + step Z)[t-1] - (X + step Z)[t-2]: linear extrapolation of solutions that are corrected a little."""

    step: float

    def __call__(self, situation: Situation) -> Tensor | None:
        if len(situation.past) < 2:
            return linear(situation)
        return mix(situation.past, (2, -1), (2 * self.step, -self.step))


@dataclass(frozen=True)
class Hindsight:
    """The coefficients with the least |B - A X0|, the same for all columns. Its products with A are not booked."""

    solutions: int
    corrections: int = 0

    def __call__(self, situation: Situation) -> Tensor:
        unbooked = LinearSystem(situation.system.columns(torch.arange(situation.system.size)), situation.system.noise)
        images = torch.stack([unbooked.matmul(v) for v in _basis(situation, self.solutions, self.corrections)])
        coefficients = _coefficients(images, situation.rhs, torch.linalg.vector_norm(situation.rhs, dim=0))
        return _combine(situation, self.solutions, self.corrections, [(slice(None), coefficients)])


@dataclass(frozen=True)
class Sketched:
    """The same coefficients from ``rows`` random rows of B - A X0: m equations a row for a handful of unknowns.

    O(rows n m (solutions + corrections)); ``apart`` fits y and the probes separately.
    """

    solutions: int
    corrections: int
    rows: int
    apart: bool = False

    def __call__(self, situation: Situation) -> Tensor:
        basis = _basis(situation, self.solutions, self.corrections)
        images = torch.stack([situation.look(vector, self.rows) for vector in basis])
        target = situation.rhs[situation.index[: self.rows]]
        norm = torch.linalg.vector_norm(situation.rhs, dim=0)
        groups = [slice(0, 1), slice(1, None)] if self.apart else [slice(None)]
        fits = [(g, _coefficients(images[:, :, g], target[:, g], norm[g])) for g in groups]
        return _combine(situation, self.solutions, self.corrections, fits)


def mix(past: Sequence[Past], solutions: Sequence[float], corrections: Sequence[float] = ()) -> Float[Tensor, "n m"]:
    """sum_i solutions[i] X[t-1-i] + sum_j corrections[j] Z[t-1-j]. O(n m) a term."""
    total = torch.zeros_like(past[0].solution)
    for weight, item in zip(solutions, past, strict=False):
        total.add_(item.solution, alpha=weight)
    for weight, item in zip(corrections, past, strict=False):
        total.add_(item.correction, alpha=weight)
    return total


def _basis(situation: Situation, solutions: int, corrections: int) -> list[Tensor]:
    past = situation.past
    return [item.solution for item in past[:solutions]] + [item.correction for item in past[:corrections]]


def _coefficients(images: Tensor, target: Tensor, norm: Tensor) -> Float64[np.ndarray, " k"]:
    found = least_squares(*to_host(images, target, norm))
    assert found is not None  # the paths of the experiment are finite
    return found


def _combine(
    situation: Situation, solutions: int, corrections: int, fits: list[tuple[slice, Float64[np.ndarray, " k"]]]
) -> Float[Tensor, "n m"]:
    basis = _basis(situation, solutions, corrections)
    total = torch.zeros_like(situation.rhs)
    for columns, coefficients in fits:
        for weight, vector in zip(coefficients.tolist(), basis, strict=True):
            total[:, columns].add_(vector[:, columns], alpha=weight)
    return total
