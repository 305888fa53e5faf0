"""The ways to train that whole fits compare: what answers, and who optimises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from gp_rangeformer import settings
from gp_rangeformer.fit import FitResult, fit_mll
from gp_rangeformer.lab.bench.prediction_contenders import cholesky
from gp_rangeformer.lab.compare.lbfgs import maximise

Watch = Callable[[Any], None]  # called after every evaluation on all points
Train = Callable[[Any, Watch], str]  # of a likelihood, in place; why it ended

_STEPS = 500
# The larger first: where there is time for one only, it is the one that comes further in so few steps.
_RATES = (0.3, 0.1)
_CHOLESKY = partial(cholesky, fast=False)


def _by_fit_mll(mll: Any, watch: Watch) -> str:
    n = len(mll.model.train_targets)

    def each(record) -> None:
        if record.points == n:
            watch(mll)

    result: FitResult = fit_mll(mll, callback=each)
    return result.reason


def _by_adam(mll: Any, watch: Watch, *, rate: float) -> str:
    optimiser = torch.optim.Adam(mll.parameters(), lr=rate)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        loss = -mll(mll.model(*mll.model.train_inputs), mll.model.train_targets)
        loss.backward()
        watch(mll)
        optimiser.step()
    return f"{_STEPS} steps"


def _by_lbfgs(mll: Any, watch: Watch) -> str:
    return maximise(mll, lambda value: watch(mll))[1]


@contextlib.contextmanager
def _inexact_line_searches() -> Iterator[None]:
    with settings.rangeformer(), settings.exact_line_search(False):
        yield


def _under(context: Callable[[], contextlib.AbstractContextManager], train: Train) -> Train:
    def run(mll: Any, watch: Watch) -> str:
        with context():
            return train(mll, watch)

    return run


def _adams(
    context: Callable[[], contextlib.AbstractContextManager], rates: tuple[float, ...] = _RATES
) -> dict[str, Train]:
    return {f"rate {rate:g}": _under(context, partial(_by_adam, rate=rate)) for rate in rates}


# Of each, what is tried, in turn, by what is said of it: the best counts. GPyTorch's conjugate gradients have the
# smaller rate only: their gradients scatter by more than a larger one forgives.
CONTENDERS: dict[str, dict[str, Train]] = {
    "rangeformer": {"": _under(settings.rangeformer, _by_fit_mll)},
    "exact": {"": _by_fit_mll},
    "rangeformer, L-BFGS": {"": _under(_inexact_line_searches, _by_lbfgs)},
    "exact path, L-BFGS": {"": _under(settings.rangeformer, _by_lbfgs)},
    "rangeformer, Adam": _adams(settings.rangeformer),
    "GPyTorch Cholesky, L-BFGS": {"": _under(_CHOLESKY, _by_lbfgs)},
    "GPyTorch Cholesky, Adam": _adams(_CHOLESKY),
    "GPyTorch CG, L-BFGS": {"": _by_lbfgs},
    "GPyTorch CG, Adam": _adams(contextlib.nullcontext, _RATES[-1:]),
}
