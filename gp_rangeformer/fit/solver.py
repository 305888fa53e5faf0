"""Who answers while a model is fitted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gp_rangeformer import settings
from gp_rangeformer.fit.objective import MOST_COLUMNS, is_likelihood
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact

# Landmarks of a fit, at least, and points for each: with neighbours for all, more do not save what they cost (n = 2000,
# five sets: 100 and 200). And passes: the last evaluations are the hard ones, and the exact path may be none.
_RANK, _POINTS_A_LANDMARK, _PASSES = 100, 90, 300
# Points below which a fit's systems are factorised, by average information and by secants: ends of fits are hard to
# iterate for, and every parameter's curvature is a solve more. Seconds of a certified fit over an exact one, 2 cores,
# five sets, average information: 1.3 to 2.0 at n = 1600, 1.0 to 1.6 at 2000, 0.8 to 1.4 at 2500, 0.6 to 1.8 at 3000
# (float32); 1.6 to 2.0 at 1600, 0.9 to 1.3 at 2200 (float64). Secants, a deep kernel and two outputs: 1.4 to 1.8 at
# 1600, 0.9 to 1.4 at 2000, 0.7 to 0.9 at 2400.
_FACTORISED_BELOW, _BY_SECANTS_BELOW = 2500, 2000


@contextlib.contextmanager
def solver_of_fit(mll: Any) -> Iterator[None]:
    """The exact path without the flag. With it the chosen solver: a certified one with neighbours for all points, so
    that probes are whitened throughout, without a check of gradients by their own size, which vanishes at an optimum.
    It answers for systems of every size: curvature comes from solves.

    :param mll: an ``ExactMarginalLogLikelihood`` of a model with training data.
    """
    chosen = settings.solver.value()
    with contextlib.ExitStack() as contexts:
        contexts.enter_context(settings.exact_size(1))
        if settings.rangeformer.off():
            contexts.enter_context(settings.rangeformer())
            contexts.enter_context(settings.solver(Exact()))
        elif isinstance(chosen, Certified):
            contexts.enter_context(settings.min_size(_factorised_below(mll)))
            contexts.enter_context(settings.solver(_through_a_fit(chosen, mll.model.train_targets.shape[-1])))
        yield


def _factorised_below(mll: Any) -> int:
    targets = mll.model.train_targets
    free = sum(parameter.numel() for parameter in mll.parameters() if parameter.requires_grad)
    informed = free <= MOST_COLUMNS and targets.dim() == 1 and is_likelihood(mll)
    return settings.min_size.value_on(targets.device, _FACTORISED_BELOW if informed else _BY_SECANTS_BELOW)


def _through_a_fit(chosen: Certified, n: int) -> Certified:
    return replace(
        chosen,
        rank=min(chosen.rank, max(_RANK, n // _POINTS_A_LANDMARK)),
        max_passes=max(chosen.max_passes, _PASSES),
        neighbours_above=0.0,
        adaptive_rank=False,
        logdet="lanczos",
        gradient_tolerance=math.inf,
    )
