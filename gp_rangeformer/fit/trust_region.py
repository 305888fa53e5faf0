"""The step of a model of second order, no longer than a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

# Of curvature in nats per point: a direction flatter than this is not known to be curved at all.
FLAT = 1e-7
_ROUNDED = 1e-14  # of the largest curvature: what is below is rounding, of targets far larger than the kernel's scale
_BISECTIONS = 60


@dataclass(frozen=True)
class Step:
    """``promised``: what the model gains by it, in nats per point; and how long it is."""

    value: Float64[Tensor, " p"]
    promised: float
    length: float


@dataclass(frozen=True)
class QuadraticModel:
    """value + gradient' s - s' curvature s / 2 near a point, per data point, for steps with wall' s <= room.

    ``wall``: None where there is none.
    """

    gradient: Float64[Tensor, " p"]
    curvature: Float64[Tensor, "p p"]
    wall: Float64[Tensor, " p"] | None = None
    room: float = 0.0

    def corrected(self, step: Float64[Tensor, " p"], curvature: float, least: float, most: float) -> QuadraticModel:
        """With the curvature s'Hs that was seen along ``step`` instead of its own, of which it is at least and at most
        these shares."""
        image = self.curvature @ step
        own = float(step @ image)
        if not own > 0:
            return self
        share = min(max(curvature / own, least), most)
        return replace(self, curvature=self.curvature + (share - 1) / own * torch.outer(image, image))

    def curvature_along(self, step: Float64[Tensor, " p"]) -> float:
        """step' curvature step."""
        return float(step @ self.curvature @ step)

    def newton_decrement(self) -> float:
        """What the model gains at most, in nats per point."""
        return self.step(math.inf).promised

    def gain(self, step: Float64[Tensor, " p"]) -> float:
        return float(self.gradient @ step - 0.5 * step @ self.curvature @ step)

    def step(self, radius: float) -> Step:
        """The best one that is no longer than ``radius``; at a wall the best along it of about that length."""
        values, vectors = torch.linalg.eigh(0.5 * (self.curvature + self.curvature.mT))
        values, along = values.clamp_min(max(FLAT, _ROUNDED * float(values[-1]))), vectors.mT @ self.gradient
        shift = _shift(values, along, radius)
        value = vectors @ (along / (values + shift))
        if self.wall is not None and (beyond := float(self.wall @ value) - self.room) > 0:
            across = vectors @ ((vectors.mT @ self.wall) / (values + shift))
            value = value - beyond / float(self.wall @ across) * across
        return Step(value, self.gain(value), float(value.norm()))


def _shift(values: Tensor, along: Tensor, radius: float) -> float:
    """What is added to all curvatures so that the step has the length of the radius, if it is longer."""
    if (along / values).norm() <= radius:
        return 0.0
    low, high = 0.0, float(along.norm()) / radius  # |g| / (shift + smallest) is at most the radius there
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (along / (values + middle)).norm() > radius else (low, middle)
    return high
