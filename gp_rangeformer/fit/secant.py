"""Curvature from how gradients change along the steps: damped BFGS, where solves for it are not to be had."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.trust_region import FLAT, QuadraticModel
from gp_rangeformer.fit.wall import AT_THE_WALL

_DAMPED = 0.2  # Powell 1978: of the curvature that the model had along a step, at least this much stays
# Nats per point by which a gradient is steep, and the share of it below which all that was learned there is forgotten:
# on targets of scale s it begins with s^2, with as much curvature, which along directions without a step of their own
# would stay and promise next to nothing (two outputs of scales 1 and 1e4: "converged", 1.3 below the optimum).
_STEEP, _OUTGROWN = 1.0, 0.1


class Secant:
    """Minus the Hessian of the likelihood per point, learned from accepted and rejected steps alike. P^2 numbers."""

    def __init__(self) -> None:
        self._matrix: Tensor | None = None
        self._size = 0.0  # of the first gradient

    def first(self, point: Evaluated) -> QuadraticModel:
        """A curvature with which a step as long as a radius of one is the best one; of a steep gradient each number's
        own, as exponentials of phi have."""
        self._size = float(point.gradient.norm())
        least = max(min(self._size, _STEEP), FLAT)
        self._matrix = torch.diag(point.gradient.abs().clamp_min(least))
        return self._model(point)

    def learn(self, old: Evaluated, new: Evaluated, kept: Evaluated) -> QuadraticModel:
        """From the two ends of a step; the model is that of ``kept``, one of them."""
        assert self._matrix is not None
        if self._size > _STEEP and float(kept.gradient.norm()) < _OUTGROWN * self._size:
            return self.first(kept)
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
