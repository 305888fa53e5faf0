"""Uphill in a trust region, by steps whose gain is judged within what values and gradients are known to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from gp_rangeformer.fit.gradient_noise import explained_by_noise
from gp_rangeformer.fit.objective import Evaluated, Objective
from gp_rangeformer.fit.secant import Secant
from gp_rangeformer.fit.trust_region import QuadraticModel

# What an evaluation may end in without ending the fit: parameters that are too far out.
NUMERICAL = (NanError, NotPSDError, torch.linalg.LinAlgError, ArithmeticError)
_NEAR = 10.0  # tolerances: of what is left to gain, where it is asked how much of it is noise
_PATIENCE = 4  # evaluations in which less than the tolerance was gained, all together
_RADIUS, _LARGEST_RADIUS, _SMALLEST_RADIUS = 1.0, 4.0, 1e-4
# Share of the promised gain above which the radius grows and below which it shrinks.
_GOOD, _POOR = 0.5, 0.1
_SHRINK = 0.3
# Of the promised gain: values that are less certain than this leave the judgement to the gradients.
_CERTAIN = 0.25

Watch = Callable[[Evaluated, bool], None]


@dataclass(frozen=True)
class Ascent:
    """Where it ended: the best point, its model, why it stopped, whether curvature came from secants, and what the noise
    of the probes explains of what the model has left to gain (where it has little)."""

    best: Evaluated
    model: QuadraticModel
    reason: str
    secants: bool
    noise: float


def ascend(
    objective: Objective,
    phi: Float64[Tensor, " p"],
    *,
    tolerance: float,
    max_evaluations: int,
    watch: Watch = lambda evaluated, accepted: None,
    radius: float = _RADIUS,
    secants: bool = False,
) -> Ascent:
    """Steps from ``phi`` until the model has less than ``tolerance`` nats per point to gain.

    :param max_evaluations: at least one.
    :param watch: sees every evaluation and whether it was accepted.
    :param secants: curvature by differences of gradients, also where average information is to be had.
    """
    secant = Secant()
    best = objective(phi)
    watch(best, True)
    near = _NEAR * tolerance
    model = None if secants else objective.quadratic_model(best, near)
    secants = model is None
    model = model or secant.first(best)
    used, gains = 1, []
    while True:
        decrement, noise = model.newton_decrement(), _explained(best, model)
        if decrement < tolerance:
            return Ascent(best, model, "converged", secants, noise)
        if decrement < noise:
            return Ascent(best, model, "as near as the probes allow", secants, noise)
        if used >= max_evaluations:
            return Ascent(best, model, "budget", secants, noise)
        if radius < _SMALLEST_RADIUS or (len(gains) >= _PATIENCE and sum(gains[-_PATIENCE:]) < tolerance):
            return Ascent(best, model, "no further gain", secants, noise)
        step = model.step(radius)
        used += 1
        try:
            new = objective(best.phi + step.value)
        except NUMERICAL:
            radius = _SHRINK * min(step.length, radius)
            continue
        gain = gained(best, new, step.value, step.promised)
        accepted, old = gain > 0, best
        gains.append(max(gain, 0.0))
        watch(new, accepted)
        if accepted:
            kept, interior = gain / step.promised, step.length < radius * (1 - 1e-6)
            radius = min(radius * (2 if kept > _GOOD else 1 if kept > _POOR else 0.5), _LARGEST_RADIUS)
            best = new
            found = None if secants else objective.quadratic_model(new, near)
            if found is not None and interior:
                found = found.flattened(step.value, float((old.gradient - new.gradient) @ step.value))
        else:
            new.observation = None
            radius = _SHRINK * min(step.length, radius)
            found = model
        if secants and math.isfinite(new.value):
            found = secant.learn(old, new, best)
        model = found or QuadraticModel(best.gradient, model.curvature, model.linear)


def gained(old: Evaluated, new: Evaluated, step: Float64[Tensor, " p"], promised: float) -> float:
    """Nats per point between two points: the difference of their values where that is certain enough, else what their
    gradients say along the step (the probes are the same, and so is most of their error)."""
    if not math.isfinite(new.value):
        return -math.inf
    difference, error = new.value - old.value, _error_of_difference(old, new)
    if error <= _CERTAIN * promised:
        return difference
    slopes = 0.5 * float((old.gradient + new.gradient) @ step)
    return min(max(slopes, difference - 2 * error), difference + 2 * error)


def _error_of_difference(old: Evaluated, new: Evaluated) -> float:
    """With the same probes most of what one value misses the other misses too: their own spread says how much."""
    separate = math.hypot(old.error, new.error)
    if old.samples is None or new.samples is None or len(old.samples) != len(new.samples):
        return separate
    paired = 2 * float((new.samples - old.samples).std()) / math.sqrt(len(new.samples))
    return min(separate, paired)


def _explained(point: Evaluated, model: QuadraticModel) -> float:
    return 0.0 if point.group_gradients is None else explained_by_noise(model, point.group_gradients)
