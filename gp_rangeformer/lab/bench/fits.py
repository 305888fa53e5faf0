"""Whole fits against seconds: how long every way to train takes to come near the optimum, and how near it comes.

Each contender trains the same model from the same start, alone, one after the other. Where it was at every evaluation
is remembered, and judged afterwards: exact float64 likelihoods, outside every timing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gpytorch
import torch

from gp_rangeformer import clear_memory
from gp_rangeformer.fit import fit_mll
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.fit_contenders import CONTENDERS, Train
from gp_rangeformer.lab.bench.fit_judgement import Judged, Place, by, judge
from gp_rangeformer.lab.compare.audit import ExactEvaluator, snapshot
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model

GAPS = (0.1, 0.03, 0.01, 0.003, 0.001)  # nats per point below the optimum
_GAP = 0.01  # by which the better of two is told
_REFERENCE_TOLERANCE = 1e-6
_REPEATED_BELOW, _REPEATS = 10.0, 3  # seconds of a fit that is run so often; its median counts
OUT_OF_TIME, FAILED = "out of time", "failed: "

Mll = gpytorch.mlls.ExactMarginalLogLikelihood


class _OutOfTimeError(BaseException):
    """Passes through whatever answers for errors on the way."""


@dataclass(frozen=True)
class FitRun:
    """One contender.

    :param total: seconds until its end; ``end``: the exact value, nats per point, that the model is left with.
    :param seconds: of the judged evaluations; ``values``: exact ones.
    :param reason: why it ended.
    :param how: which of several tries this is, the best: Adam's rate.
    :param totals: seconds of every repetition, of which this is the median; none where it ran once.
    """

    name: str
    evaluations: int
    total: float
    end: float
    seconds: tuple[float, ...]
    values: tuple[float, ...]
    reason: str
    how: str = ""
    totals: tuple[float, ...] = ()

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
        tuples = ("seconds", "values", "totals")
        runs = tuple(
            FitRun(**{**run, **{name: tuple(run[name]) for name in tuples if name in run}}) for run in content["runs"]
        )
        return cls(**{**content, "runs": runs})

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class _Trained:
    """A fit before it is judged."""

    places: tuple[Place, ...]
    reason: str
    totals: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        return self.places[-1].seconds


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
    where = f"{dataset.name}, n = {len(dataset.train_y)}"
    trained: list[tuple[str, str, _Trained]] = []
    for name in names:
        for how, train in CONTENDERS[name].items():
            observer(f"{where}: {name} {how}".rstrip())
            trained.append((name, how, _repeated(narrow, kernel, train, patience)))
            if trained[-1][-1].reason == OUT_OF_TIME:
                break  # there is no time for another try either
    observer(f"{where}: the optimum")
    best = _reference(wide, kernel)
    observer(f"{where}: exact values")
    exact = by(ExactEvaluator(wide, kernel))
    judged = [Judged(found.places, exact) for _, _, found in trained]
    optimum = judge(judged, GAPS, best)
    runs: dict[str, FitRun] = {}
    for (name, how, found), values in zip(trained, judged, strict=True):
        seconds, likelihoods = values.in_order()
        evaluations = len(found.places)
        run = FitRun(
            name, evaluations, found.total, likelihoods[-1], seconds, likelihoods, found.reason, how, found.totals
        )
        runs[name] = min((run, runs.get(name, run)), key=lambda each: _rank(each, optimum))
    n, d = dataset.train_x.shape
    return FitCell(dataset.name, n, d, optimum, tuple(runs.values()))


def _rank(run: FitRun, optimum: float) -> tuple[float, float]:
    """Sooner near the optimum, else ending nearer."""
    seconds = run.seconds_to(_GAP, optimum)
    return float("inf") if seconds is None else seconds, -run.end


def _repeated(dataset: Dataset, kernel: str, train: Train, patience: float) -> _Trained:
    """The fit, and where it takes little the one of three that took the median time."""
    runs = [_train(dataset, kernel, train, patience)]
    if runs[0].total < min(_REPEATED_BELOW, patience):
        runs += [_train(dataset, kernel, train, patience) for _ in range(_REPEATS - 1)]
    runs.sort(key=lambda run: run.total)
    totals = tuple(run.total for run in runs) if len(runs) > 1 else ()
    return replace(runs[len(runs) // 2], totals=totals)


def _train(dataset: Dataset, kernel: str, train: Train, patience: float) -> _Trained:
    """Seconds and parameters of every evaluation, the end's last; why it ended."""
    clear_memory()
    model, likelihood = build_model(dataset, kernel)
    mll = Mll(likelihood, model)
    places: list[Place] = []
    aside = 0.0  # seconds of the bookkeeping itself
    started = time.perf_counter()

    def watch(mll: Any) -> None:
        nonlocal aside
        now = time.perf_counter()
        places.append(Place(now - started - aside, snapshot(mll.model)))
        aside += time.perf_counter() - now
        if now - started > patience:
            raise _OutOfTimeError

    try:
        reason = train(mll, watch)
    except _OutOfTimeError:
        reason = OUT_OF_TIME
    except (ArithmeticError, RuntimeError) as error:
        reason = f"{FAILED}{type(error).__name__}"
    places.append(Place(time.perf_counter() - started - aside, snapshot(model)))
    return _Trained(tuple(places), reason)


def _reference(dataset: Dataset, kernel: str) -> float:
    model, likelihood = build_model(dataset, kernel)
    return fit_mll(Mll(likelihood, model), tolerance=_REFERENCE_TOLERANCE, max_evaluations=100).value


def warm_up() -> None:
    """What only the first fit of a process pays for."""
    dataset = datasets.load("robot_arm", n=120, n_test=1, seed=0).to(torch.float32)
    for train in (train for tries in CONTENDERS.values() for train in tries.values()):
        model, likelihood = build_model(dataset, "matern32")
        left = iter(range(3))

        def stop(mll: Any, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise _OutOfTimeError

        with contextlib.suppress(_OutOfTimeError):
            train(Mll(likelihood, model), stop)
