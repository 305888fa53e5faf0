"""One fit of standardised data, whose best parameters are kept in a folder while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.fit import FitResult, Record, fit_mll
from gp_rangeformer.regression.kernels import Covariance, Regression, build_for_table
from gp_rangeformer.regression.unfinished import Unfinished

Watch = Callable[[str, Record], None]


class Fitted(NamedTuple):
    """A trained model. ``level``: the probability of the fit's ``error``, None where the likelihood is exact."""

    gp: Regression
    result: FitResult
    level: float | None


def fitted(
    x: Tensor, y: Tensor, start: Covariance, seed: int, watch: Callable[[Record], None], unfinished: Unfinished
) -> Fitted:
    """A model of standardised data, trained to convergence with the flag on. The global generator is left as it is.

    :param x: n x d.
    :param y: n.
    :param unfinished: keeps the best parameters so far, and has those of an interrupted fit: where that was on a subset
        of the rows, subsets of that size are gone on with.
    :raises FitError: as :func:`gp_rangeformer.fit.fit_mll`.
    """
    gp: Any = build_for_table(x, y, start)
    points = unfinished.restore_best(start, gp)
    seen = 0

    def see(record: Record) -> None:
        nonlocal seen
        seen += 1
        if record.accepted and seen > 1:  # the first ones are known already
            unfinished.keep_best(start, gp, record.points, record.value)
        watch(record)

    devices = [x.device] if x.device.type == "cuda" else []
    levels: bool | int = True if points is None else points if points < len(y) else False
    with torch.random.fork_rng(devices), settings.rangeformer():
        torch.manual_seed(seed)
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)
        result = fit_mll(mll, callback=see, seed=seed, levels=levels)
    return Fitted(gp, result, None if result.report is None else result.report.logdet_level)
