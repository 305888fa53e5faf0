"""Whole fits against seconds: how long every way to train takes to come near the optimum, and how near it comes.

Each contender trains the same model from the same start, alone, one after the other. Where it was at every evaluation
is remembered, and judged afterwards: exact float64 likelihoods, outside every timing.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gpytorch
import numpy as np
import torch
from linear_operator.utils.errors import NanError, NotPSDError

from gp_rangeformer import clear_memory, settings
from gp_rangeformer.fit import FitResult, fit_mll
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare.audit import ExactEvaluator, Parameters, snapshot
from gp_rangeformer.lab.compare.lbfgs import maximise
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model

GAPS = (0.1, 0.03, 0.01, 0.003, 0.001)  # nats per point below the optimum
_AUDITED = 16  # evaluations of a run that are judged, at most
_ADAM_STEPS, _ADAM_RATE = 200, 0.1
_REFERENCE_TOLERANCE = 1e-6

Mll = gpytorch.mlls.ExactMarginalLogLikelihood
Watch = Callable[[Any], None]  # called after every evaluation on all points


class _OutOfTimeError(BaseException):
    """Passes through whatever answers for errors on the way."""


@dataclass(frozen=True)
class FitRun:
    """One contender. ``seconds``, ``values``: of the judged evaluations, exact values in nats per point; ``end``: the
    value of the parameters that the model is left with, ``total``: seconds until then."""

    name: str
    evaluations: int
    total: float
    end: float
    seconds: tuple[float, ...]
    values: tuple[float, ...]
    reason: str

    def seconds_to(self, gap: float, optimum: float) -> float | None:
        """Until an evaluation was within ``gap`` of ``optimum``; None if none was."""
        reached = [second for second, value in zip(self.seconds, self.values, strict=True) if value >= optimum - gap]
        return min(reached, default=None)


@dataclass(frozen=True)
class FitCell:
    """A data set at a size. ``optimum``: the highest likelihood that anybody found, a float64 fit to 1e-6 included."""

    dataset: str
    n: int
    d: int
    optimum: float
    runs: tuple[FitRun, ...]

    @property
    def key(self) -> tuple[str, int]:
        return self.dataset, self.n

    @classmethod
    def from_json(cls, content: dict) -> FitCell:
        runs = tuple(
            FitRun(**{**run, "seconds": tuple(run["seconds"]), "values": tuple(run["values"])})
            for run in content["runs"]
        )
        return cls(**{**content, "runs": runs})

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure(
    dataset: Dataset,
    kernel: str,
    names: Sequence[str],
    *,
    dtype: torch.dtype,
    patience: float,
    observer: Callable[[str], None] = lambda text: None,
) -> FitCell:
    """Every contender's fit of ``dataset`` (float64, as loaded), and its judgement.

    :param names: of :data:`CONTENDERS`.
    :param patience: seconds after which a contender is stopped.
    """
    narrow, wide = dataset.to(dtype), dataset.to(torch.float64)
    exact = ExactEvaluator(wide, kernel)
    unjudged = []
    for name in names:
        observer(f"{dataset.name}, n = {len(dataset.train_y)}: {name}")
        unjudged.append((name, *_train(narrow, kernel, CONTENDERS[name], patience)))
    observer(f"{dataset.name}, n = {len(dataset.train_y)}: the optimum")
    best = _reference(wide, kernel)
    runs = []
    for name, places, total, reason in unjudged:
        observer(f"{dataset.name}, n = {len(dataset.train_y)}: exact values of {name}")
        chosen = _chosen(len(places))
        values = [_judged(exact, places[index][1]) for index in chosen]
        seconds = [places[index][0] for index in chosen]
        runs.append(FitRun(name, len(places), total, values[-1], tuple(seconds), tuple(values), reason))
    optimum = max([best, *(value for run in runs for value in run.values)])
    n, d = dataset.train_x.shape
    return FitCell(dataset.name, n, d, optimum, tuple(runs))


def _chosen(count: int) -> list[int]:
    """Evenly, the last one included."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, _AUDITED))})


def _judged(exact: ExactEvaluator, parameters: Parameters) -> float:
    """Minus infinity where not even float64 has a factor."""
    try:
        return exact(_widened(parameters)).value
    except (NanError, NotPSDError):
        return -math.inf


def _widened(parameters: Parameters) -> Parameters:
    return {name: tensor.double() for name, tensor in parameters.items()}


def _train(
    dataset: Dataset, kernel: str, train: Callable[[Any, Watch], str], patience: float
) -> tuple[list[tuple[float, Parameters]], float, str]:
    """Seconds and parameters of every evaluation, the end's last; total seconds; why it ended."""
    clear_memory()
    model, likelihood = build_model(dataset, kernel)
    mll = Mll(likelihood, model)
    places: list[tuple[float, Parameters]] = []
    aside = 0.0  # seconds of the bookkeeping itself
    started = time.perf_counter()

    def watch(mll: Any) -> None:
        nonlocal aside
        now = time.perf_counter()
        places.append((now - started - aside, snapshot(mll.model)))
        aside += time.perf_counter() - now
        if now - started > patience:
            raise _OutOfTimeError

    try:
        reason = train(mll, watch)
    except _OutOfTimeError:
        reason = "out of time"
    except (ArithmeticError, RuntimeError) as error:
        reason = f"failed: {type(error).__name__}"
    total = time.perf_counter() - started - aside
    places.append((total, snapshot(model)))
    return places, total, reason


def _reference(dataset: Dataset, kernel: str) -> float:
    model, likelihood = build_model(dataset, kernel)
    return fit_mll(Mll(likelihood, model), tolerance=_REFERENCE_TOLERANCE, max_evaluations=100).value


def _by_fit_mll(mll: Any, watch: Watch) -> str:
    n = len(mll.model.train_targets)

    def each(record) -> None:
        if record.points == n:
            watch(mll)

    result: FitResult = fit_mll(mll, callback=each)
    return result.reason


def _by_adam(mll: Any, watch: Watch) -> str:
    optimiser = torch.optim.Adam(mll.parameters(), lr=_ADAM_RATE)
    for _ in range(_ADAM_STEPS):
        optimiser.zero_grad()
        loss = -mll(mll.model(*mll.model.train_inputs), mll.model.train_targets)
        loss.backward()
        watch(mll)
        optimiser.step()
    return f"{_ADAM_STEPS} steps"


def _by_lbfgs(mll: Any, watch: Watch) -> str:
    return maximise(mll, lambda value: watch(mll))[1]


@contextlib.contextmanager
def _cholesky() -> Iterator[None]:
    with gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.max_cholesky_size(10**9):
        yield


@contextlib.contextmanager
def _inexact_line_searches() -> Iterator[None]:
    with settings.rangeformer(), settings.exact_line_search(False):
        yield


def _under(
    context: Callable[[], contextlib.AbstractContextManager], train: Callable[[Any, Watch], str]
) -> Callable[[Any, Watch], str]:
    def run(mll: Any, watch: Watch) -> str:
        with context():
            return train(mll, watch)

    return run


CONTENDERS: dict[str, Callable[[Any, Watch], str]] = {
    "rangeformer": _under(settings.rangeformer, _by_fit_mll),
    "exact": _by_fit_mll,
    "rangeformer, L-BFGS": _under(_inexact_line_searches, _by_lbfgs),
    "exact path, L-BFGS": _under(settings.rangeformer, _by_lbfgs),
    "rangeformer, Adam": _under(settings.rangeformer, _by_adam),
    "GPyTorch Cholesky, L-BFGS": _under(_cholesky, _by_lbfgs),
    "GPyTorch Cholesky, Adam": _under(_cholesky, _by_adam),
    "GPyTorch CG, L-BFGS": _by_lbfgs,
    "GPyTorch CG, Adam": _by_adam,
}


def warm_up() -> None:
    """What only the first fit of a process pays for."""
    dataset = datasets.load("robot_arm", n=120, n_test=1, seed=0).to(torch.float32)
    for train in CONTENDERS.values():
        model, likelihood = build_model(dataset, "matern32")
        left = iter(range(3))

        def stop(mll: Any, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise _OutOfTimeError

        with contextlib.suppress(_OutOfTimeError):
            train(Mll(likelihood, model), stop)
