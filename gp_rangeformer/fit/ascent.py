"""Uphill in a trust region, by steps whose gain is judged within what values and gradients are known to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from gp_rangeformer.allocation.free_memory import InsufficientMemoryError
from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.gradient_noise import explained_by_noise
from gp_rangeformer.fit.objective import Objective
from gp_rangeformer.fit.result import (
    AS_NEAR_AS_PROBES_ALLOW,
    AS_NEAR_AS_ROUNDING_ALLOWS,
    NO_FURTHER_GAIN,
    TIMEOUT,
    USED_UP,
)
from gp_rangeformer.fit.scatter import Scatter, gained_by_slopes
from gp_rangeformer.fit.secant import Secant
from gp_rangeformer.fit.trust_region import QuadraticModel, Step
from gp_rangeformer.fit.wall import AT_THE_WALL

# What an evaluation may end in without ending the fit: parameters are too far out, outside of a prior's support (a
# ValueError of torch's distributions), or nothing certifies and the exact path is too large.
NUMERICAL = (NanError, NotPSDError, torch.linalg.LinAlgError, ArithmeticError, InsufficientMemoryError, ValueError)
_NEAR = 10.0  # tolerances: of what is left to gain, where it is asked how much of it is noise
# Accepted steps, and steps of any kind, in which less than the tolerance was gained, all together.
_PATIENCE, _LONG_PATIENCE = 3, 5
# Further evaluations, unless the caller says how many: secants take tens where average information takes two.
_EVALUATIONS, _BY_SECANTS = 40, 400
_OF_SECANTS = 1e-3  # of the tolerance: curvature that was seen along a few steps says little of the rest
_RADIUS, _LARGEST_RADIUS, _SMALLEST_RADIUS = 1.0, 4.0, 1e-3
_TINY_RADIUS = 1e-6  # where average information was wrong: a likelihood may bend within a ten-thousandth
# Share of the promised gain above which the radius grows and below which it shrinks.
_GOOD, _POOR = 0.5, 0.1
_SHRINK = 0.3
# Of the promised gain: values that are less certain than this leave the judgement to the gradients.
_CERTAIN = 0.25
# Average information is corrected by what gradients saw along the last step: where a step that no radius shortened met
# less than a share of the curvature that is there now (ridges, as where the noise vanishes), and where a step gained
# less than a share of what was promised. Evaluations of five sets at n = 1000 without, with the first, with both: 20,
# 16, 9 on kin40k, 21, 21, 12 on pol, 40, 35, 34 on protein, 7 each on bike, 16, 15, 13 on elevators.
_FLATTER, _DISAPPOINTING = 0.8, 0.3
_LEAST, _MOST = 0.1, 4.0  # of the curvature that average information has

Watch = Callable[[Evaluated, bool], None]


@dataclass(frozen=True)
class Ascent:
    """Where it ended: the best point, its model, why it stopped, whether curvature came from secants, and what the
    noise of the probes explains of what the model has left to gain (where it has little)."""

    best: Evaluated
    model: QuadraticModel
    reason: str
    secants: bool
    noise: float


def ascend(
    objective: Objective,
    best: Evaluated,
    *,
    tolerance: float,
    max_evaluations: int | None,
    watch: Watch = lambda evaluated, accepted: None,
    expired: Callable[[], bool] = lambda: False,
) -> Ascent:
    """Steps from ``best`` until the model has less than ``tolerance`` nats per point to gain, or less than noise.

    Where average information leads nowhere although it has far more left to gain, of values and gradients that are
    exact, secants take over: it is the wrong curvature there (spectral mixtures).

    :param best: just evaluated.
    :param max_evaluations: further ones, at most; None for 40, and 400 by secants.
    :param watch: sees every further evaluation and whether it was accepted.
    :param expired: whether to stop with what there is.
    """
    secant, scatter, near, radius = Secant(), Scatter(), _NEAR * tolerance, _RADIUS
    gains: list[float | None] = []  # None for a rejected step
    used, met = 0, 1.0  # of the curvature that average information has, what the last step met
    found = objective.quadratic_model(best, near)
    secants = found is None
    model = secant.first(best) if found is None else found
    enough = (_OF_SECANTS if secants else 1.0) * tolerance
    misled = False  # by average information, so that secants have taken over
    by_information = _EVALUATIONS if max_evaluations is None else max_evaluations
    by_secants = _BY_SECANTS if max_evaluations is None else max_evaluations
    while True:
        noise = 0.0 if best.group_gradients is None else explained_by_noise(model, best.group_gradients)
        decrement, reason = model.newton_decrement(), None
        hidden = scatter.hides(decrement)
        if decrement < enough * met:  # with less curvature more is left to gain
            reason = "converged"
        elif decrement < noise:
            reason = AS_NEAR_AS_PROBES_ALLOW
        elif used >= (by_secants if secants else by_information):
            reason = USED_UP
        elif expired():
            reason = TIMEOUT
        elif radius < (_TINY_RADIUS if misled else _SMALLEST_RADIUS) or _stalls(gains, enough):
            reason = NO_FURTHER_GAIN
        elif hidden:
            reason = AS_NEAR_AS_ROUNDING_ALLOWS
        stuck = reason in (NO_FURTHER_GAIN, USED_UP)
        if stuck and (decrement < best.rounding or hidden):
            stuck, reason = False, AS_NEAR_AS_ROUNDING_ALLOWS
        if stuck and not secants and used < by_secants and _is_exact(best):
            misled = secants = True
            model, radius, met, enough = secant.first(best), _RADIUS, 1.0, _OF_SECANTS * tolerance
            gains.clear()
        elif reason is not None:
            return Ascent(best, model, reason, secants, noise)
        step = model.step(radius)
        if not step.promised > 0:  # at a wall
            return Ascent(best, model, NO_FURTHER_GAIN, secants, noise)
        used += 1
        try:
            new = objective(best.phi + step.value)
        except NUMERICAL:
            watch(_nowhere(best.phi + step.value), False)
            radius = _SHRINK * min(step.length, radius)
            gains += [] if misled else [None]
            continue
        old, gain = best, gained(best, new, step)
        if new.room < min(best.room, -AT_THE_WALL) or (new.jittered and not best.jittered):
            gain = -math.inf  # a model's wall is straight, and jitter makes another likelihood of it
        accepted, kept, full = gain > 0, gain / step.promised, step.length < radius * (1 - 1e-6)
        if _is_exact(old) and _is_exact(new):
            scatter.see(old, new, step)
        watch(new, accepted)
        gains += [gain] if accepted else [] if misled else [None]
        if kept > _GOOD and not full and radius < _RADIUS:
            gains.clear()  # little was gained because former steps had failed: the radius grows again
        if accepted:
            best = new
            radius = min(radius * (2 if kept > _GOOD else 1 if kept > _POOR else 0.5), _LARGEST_RADIUS)
            found = None if secants else objective.quadratic_model(new, near)
        else:
            new.seen = None
            radius = _SHRINK * min(step.length, radius)
            found = None if secants else model
        if secants:
            model = secant.learn(old, new, best)
        elif found is not None:
            seen, own = float((old.gradient - new.gradient) @ step.value), found.curvature_along(step.value)
            if accepted and own > 0 and math.isfinite(seen):
                met = min(max(seen / own, _LEAST), 1.0)
            model = _corrected(found, step.value, seen, kept, accepted and full)


def _is_exact(point: Evaluated) -> bool:
    """Whether value and gradient are known to rounding."""
    return point.samples is None and point.error == 0 and bool(point.gradient.isfinite().all())


def _nowhere(phi: Float64[Tensor, " p"]) -> Evaluated:
    """Where an evaluation failed."""
    return Evaluated(phi, -math.inf, 0.0, torch.zeros_like(phi), None)


def _stalls(gains: list[float | None], tolerance: float) -> bool:
    accepted = [gain for gain in gains if gain is not None]
    if len(accepted) >= _PATIENCE and sum(accepted[-_PATIENCE:]) < tolerance:
        return True
    return len(gains) >= _LONG_PATIENCE and sum(gain or 0.0 for gain in gains[-_LONG_PATIENCE:]) < tolerance


def _corrected(
    model: QuadraticModel, step: Float64[Tensor, " p"], seen: float, kept: float, full: bool
) -> QuadraticModel:
    """By the curvature that gradients have ``seen`` along ``step``, of which ``kept`` says how much of its promise it
    kept."""
    if not math.isfinite(seen):
        return model
    if kept < _DISAPPOINTING:
        return model.corrected(step, seen, 1.0, _MOST)
    if full and seen < _FLATTER * model.curvature_along(step):
        return model.corrected(step, seen, _LEAST, 1.0)
    return model


def gained(old: Evaluated, new: Evaluated, step: Step) -> float:
    """Nats per point between two points: the difference of their values where that is certain enough, else what their
    gradients say along the step (the probes are the same, and so is most of their error)."""
    if not (math.isfinite(new.value) and bool(new.gradient.isfinite().all())):
        return -math.inf
    difference, error = new.value - old.value, _error_of_difference(old, new)
    if error <= _CERTAIN * step.promised:
        return difference
    return min(max(gained_by_slopes(old, new), difference - 2 * error), difference + 2 * error)


def _error_of_difference(old: Evaluated, new: Evaluated) -> float:
    """With the same probes most of what one value misses the other misses too: their own spread says how much."""
    separate = math.hypot(old.error, new.error) + max(old.rounding, new.rounding)
    if old.samples is None or new.samples is None or len(old.samples) != len(new.samples):
        return separate
    paired = 2 * float((new.samples - old.samples).std()) / math.sqrt(len(new.samples))
    return min(separate, paired)
