"""Curvature from how gradients change along the steps: damped BFGS, where solves for it are not to be had."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.trust_region import FLAT, QuadraticModel
from gp_rangeformer.fit.wall import AT_THE_WALL

_DAMPED = 0.2  # Powell 1978: of the curvature that the model had along a step, at least this much stays


class Secant:
    """Minus the Hessian of the likelihood per point, learned from accepted and rejected steps alike. P^2 numbers."""

    def __init__(self) -> None:
        self._matrix: Tensor | None = None

    def first(self, point: Evaluated) -> QuadraticModel:
        """A curvature with which a step as long as a radius of one is the best one."""
        size = float(point.gradient.norm())
        self._matrix = max(size, FLAT) * torch.eye(len(point.gradient), dtype=torch.float64)
        return self._model(point)

    def learn(self, old: Evaluated, new: Evaluated, kept: Evaluated) -> QuadraticModel:
        """From the two ends of a step; the model is that of ``kept``, one of them."""
        assert self._matrix is not None
        step, change = new.phi - old.phi, old.gradient - new.gradient
        if bool(change.isfinite().all()) and float(step @ self._matrix @ step) > 0:
            self._update(step, change)
        return self._model(kept)

    def _update(self, step: Float64[Tensor, " p"], change: Float64[Tensor, " p"]) -> None:
        matrix = self._matrix
        assert matrix is not None
        image = matrix @ step
        own, seen = float(step @ image), float(step @ change)
        if seen < _DAMPED * own:
            share = (1 - _DAMPED) * own / (own - seen)
            change = share * change + (1 - share) * image
        self._matrix = matrix - torch.outer(image, image) / own + torch.outer(change, change) / float(step @ change)

    def _model(self, point: Evaluated) -> QuadraticModel:
        assert self._matrix is not None
        # To where steps are refused: what is left is little, and curvature that was learned on the way is exact there.
        return QuadraticModel(point.gradient, self._matrix, point.wall, max(point.room + AT_THE_WALL, 0.0))
