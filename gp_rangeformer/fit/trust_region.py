"""The step of a model of second order, no longer than a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

# Of curvature in nats per point: a direction flatter than this is not known to be curved at all.
FLAT = 1e-7
_BISECTIONS = 60
# Of the model's curvature along a step: what was seen there replaces it below the one, and is taken for the other at
# least.
_CLEARLY, _LEAST = 0.8, 0.1


@dataclass(frozen=True)
class Step:
    """``promised``: what the model gains by it, in nats per point; ``length``: of the part that the radius bounds."""

    value: Float64[Tensor, " p"]
    promised: float
    length: float


@dataclass(frozen=True)
class QuadraticModel:
    """value + gradient' s - s' curvature s / 2 near a point, per data point.

    ``linear``: the parameters that the mean is linear in. Their part of a step is whatever is best beside the others',
    at any length: the likelihood is quadratic in them.
    """

    gradient: Float64[Tensor, " p"]
    curvature: Float64[Tensor, "p p"]
    linear: Bool[Tensor, " p"]

    def flattened(self, step: Float64[Tensor, " p"], curvature: float) -> QuadraticModel:
        """With the curvature s'Hs that was seen along ``step`` instead of its own, where that is clearly less: on ridges,
        as where the noise vanishes, average information promises too little."""
        image = self.curvature @ step
        own = float(step @ image)
        if not curvature < _CLEARLY * own:
            return self
        share = max(curvature / own, _LEAST)
        return replace(self, curvature=self.curvature + (share - 1) / own * torch.outer(image, image))

    def newton_decrement(self) -> float:
        """What the model gains at most, in nats per point."""
        return self.step(math.inf).promised

    def gain(self, step: Float64[Tensor, " p"]) -> float:
        return float(self.gradient @ step - 0.5 * step @ self.curvature @ step)

    def step(self, radius: float) -> Step:
        """The best one whose bounded part is no longer than ``radius``."""
        own, others = ~self.linear, self.linear
        cross, inner = self.curvature[own][:, others], self.curvature[others][:, others]
        reduced, gradient = self.curvature[own][:, own], self.gradient[own]
        values, vectors = torch.linalg.eigh(_symmetric(inner))
        inverse = (vectors / values.clamp_min(max(FLAT * float(values.max()), 1e-300))) @ vectors.mT if len(values) else inner
        reduced = _symmetric(reduced - cross @ inverse @ cross.mT)
        gradient = gradient - cross @ (inverse @ self.gradient[others])
        bounded = _bounded_step(reduced, gradient, radius)
        value = self.gradient.new_zeros(len(self.gradient))
        value[own] = bounded
        value[others] = inverse @ (self.gradient[others] - cross.mT @ bounded)
        return Step(value, self.gain(value), float(bounded.norm()))


def _bounded_step(curvature: Tensor, gradient: Tensor, radius: float) -> Tensor:
    if not len(gradient):
        return gradient
    values, vectors = torch.linalg.eigh(curvature)
    values, along = values.clamp_min(FLAT), vectors.mT @ gradient
    shift = 0.0
    if (along / values).norm() > radius:
        low, high = 0.0, float(along.norm()) / radius  # |g| / (shift + smallest) is at most the radius there
        for _ in range(_BISECTIONS):
            shift = 0.5 * (low + high)
            low, high = (shift, high) if (along / (values + shift)).norm() > radius else (low, shift)
        shift = high
    return vectors @ (along / (values + shift))


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)
