"""The step of a model of second order, no longer than a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

# Of curvature in nats per point: a direction flatter than this is not known to be curved at all.
FLAT = 1e-7
_BISECTIONS = 60


@dataclass(frozen=True)
class Step:
    """``promised``: what the model gains by it, in nats per point; and how long it is."""

    value: Float64[Tensor, " p"]
    promised: float
    length: float


@dataclass(frozen=True)
class QuadraticModel:
    """value + gradient' s - s' curvature s / 2 near a point, per data point."""

    gradient: Float64[Tensor, " p"]
    curvature: Float64[Tensor, "p p"]

    def corrected(self, step: Float64[Tensor, " p"], curvature: float, least: float, most: float) -> QuadraticModel:
        """With the curvature s'Hs that was seen along ``step`` instead of its own, of which it is at least and at most
        these shares."""
        image = self.curvature @ step
        own = float(step @ image)
        if not own > 0:
            return self
        share = min(max(curvature / own, least), most)
        return replace(self, curvature=self.curvature + (share - 1) / own * torch.outer(image, image))

    def newton_decrement(self) -> float:
        """What the model gains at most, in nats per point."""
        return self.step(math.inf).promised

    def gain(self, step: Float64[Tensor, " p"]) -> float:
        return float(self.gradient @ step - 0.5 * step @ self.curvature @ step)

    def step(self, radius: float) -> Step:
        """The best one that is no longer than ``radius``."""
        value = _bounded_step(0.5 * (self.curvature + self.curvature.mT), self.gradient, radius)
        return Step(value, self.gain(value), float(value.norm()))


def _bounded_step(curvature: Tensor, gradient: Tensor, radius: float) -> Tensor:
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

