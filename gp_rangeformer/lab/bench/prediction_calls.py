"""Calls of one contender: seconds on a fresh model and after, memory, errors."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from gp_rangeformer import clear_memory, collect_reports
from gp_rangeformer.lab.bench.contenders import UnavailableError
from gp_rangeformer.lab.bench.memory import freed_at_once
from gp_rangeformer.lab.bench.prediction_contenders import Contender
from gp_rangeformer.lab.bench.prediction_data import Fitted, blocks
from gp_rangeformer.lab.bench.prediction_exact import Errors, ExactPredictions
from gp_rangeformer.lab.compare.instruments import PeakMemory

# So many runs where the first takes less than so many seconds. Memory that a process has not had before may cost a
# second of its own, in one run and not in the next: a single one tells little below half a minute.
_RUNS = {0.5: 5, 30.0: 3}
_WARNINGS, _LONGEST = 3, 300  # that are kept; characters of each

Found = TypeVar("Found")


@dataclass(frozen=True)
class Calls:
    """Means and variances of ``t`` points.

    :param first: seconds of a call on a fresh model; ``second``: of a later one, of other points; medians of
        ``repeated`` runs, where they are short.
    :param peak: of a first call in MiB above what was held before; None where it cannot be told.
    :param errors: the larger ones of both calls; None where nothing exact is known.
    :param stated: what the first call's report says of its variances: 0 of exact ones; None where there is no report.
    :param answered_by: the solvers in the first call's reports, with their notes.
    :param warned: the first warnings of the first call.
    :param failure: why it has no answer.
    """

    t: int
    first: float | None = None
    second: float | None = None
    repeated: tuple[int, int] = (0, 0)
    peak: float | None = None
    errors: Errors | None = None
    stated: float | None = None
    answered_by: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Row:
    """One contender on one model: its calls of every number of points."""

    name: str
    description: str
    calls: tuple[Calls, ...]

    def at(self, t: int) -> Calls:
        """:raises KeyError: not measured."""
        for calls in self.calls:
            if calls.t == t:
                return calls
        raise KeyError(t)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Row:
        calls = []
        for one in content["calls"]:
            errors = None if one["errors"] is None else Errors(**one["errors"])
            lists = {name: tuple(one[name]) for name in ("repeated", "answered_by", "warned")}
            calls.append(Calls(**{**one, **lists, "errors": errors}))
        return cls(content["name"], content["description"], tuple(calls))

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure_row(contender: Contender, fitted: Fitted, sizes: Sequence[int], exact: ExactPredictions | None) -> Row:
    """All calls of one contender; what fails is said in its place."""
    where = blocks(fitted.data.test_x, tuple(sizes))
    calls = tuple(_measure_calls(contender, fitted, where[t], exact) for t in sizes)
    return Row(contender.name, contender.description, calls)


def _measure_calls(
    contender: Contender, fitted: Fitted, where: tuple[slice, slice], exact: ExactPredictions | None
) -> Calls:
    t = where[0].stop - where[0].start
    gc.collect()  # models hold themselves: those of before go now, and not within a time
    try:
        contender.check(fitted, t)
        return _calls(contender, fitted, where, exact)
    except UnavailableError as error:
        return Calls(t, failure=str(error))
    # Whatever it is: a row that fails must not cost the others, and is told.
    except Exception as error:
        return Calls(t, failure=said(error))
    finally:
        clear_memory()


def _calls(contender: Contender, fitted: Fitted, where: tuple[slice, slice], exact: ExactPredictions | None) -> Calls:
    points = [fitted.data.test_x[block] for block in where]
    predict = contender.build(fitted)
    answers, firsts, seconds = [], [], []
    with warnings.catch_warnings(record=True) as caught, collect_reports() as reports:
        warnings.simplefilter("always")
        clear_memory()
        took, found = timed(lambda: predict(points[0]))
        firsts.append(took)
        answers.append(found)
    answered, warned = _answered_by(reports), _first_lines(caught)
    stated = [report.variance_error for report in reports if report.variance_error is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Other points than the call before had.
        while not enough(seconds):
            took, found = timed(lambda: predict(points[1 - len(seconds) % 2]))
            if not seconds:
                answers.append(found)
            seconds.append(took)
        del predict, found
        while not enough(firsts):
            firsts.append(_first_call(contender, fitted, points[0]))
        peak = peak_of(lambda: contender.build(fitted), lambda predict: predict(points[0]))
    finite = all(bool(part.isfinite().all()) for answer in answers for part in answer)
    failure = None if finite else "NaN or infinity in its answer"
    errors = None
    if exact is not None and finite:
        both = [exact.errors(block, *answer) for block, answer in zip(where, answers, strict=True)]
        errors = Errors(*(max(getattr(each, name) for each in both) for name in Errors.__dataclass_fields__))
    return Calls(
        len(points[0]),
        median(firsts),
        median(seconds),
        (len(firsts), len(seconds)),
        peak,
        errors,
        max(stated, default=None),
        answered,
        warned,
        failure,
    )


def _first_call(contender: Contender, fitted: Fitted, points: Tensor) -> float:
    """Seconds."""
    predict = contender.build(fitted)
    clear_memory()
    return timed(lambda: predict(points))[0]


def enough(seconds: Sequence[float]) -> bool:
    """Whether so many runs make a median: five short ones, three of up to thirty seconds, one of a longer one."""
    if not seconds:
        return False
    wanted = next((runs for limit, runs in _RUNS.items() if seconds[0] < limit), 1)
    return len(seconds) >= wanted


def timed(call: Callable[[], Found]) -> tuple[float, Found]:
    """Seconds, and what it returned."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def repeated(prepare: Callable[[], Any], call: Callable[[Any], Found]) -> tuple[float, Found]:
    """Median seconds of ``call`` on what ``prepare`` makes anew, and its first answer; one run where that is long."""
    seconds: list[float] = []
    answer: Found | None = None
    while not enough(seconds):
        clear_memory()
        took, found = timed(partial(call, prepare()))
        answer = found if answer is None else answer
        seconds.append(took)
    assert answer is not None
    return median(seconds), answer


def peak_of(prepare: Callable[[], Any], call: Callable[[Any], object]) -> float | None:
    """MiB of ``call`` above what was held before, what ``prepare`` made included in that."""
    clear_memory()
    prepared = prepare()
    memory = PeakMemory(torch.device("cpu"))
    with freed_at_once():
        memory.start()
        call(prepared)
        peak = memory.peak()
    clear_memory()
    return peak


def said(error: Exception) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:_LONGEST]


def _answered_by(reports: Any) -> tuple[str, ...]:
    found = []
    for report in reports:
        text = f"{report.operation}: {report.solver}"
        if report.variance_error:
            text += f", variances +- {report.variance_error:.2%}"
        found.append("; ".join([text, *report.notes]))
    return tuple(found)


def _first_lines(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    lines = [f"{one.category.__name__}: {str(one.message).strip().splitlines()[0]}"[:_LONGEST] for one in caught]
    return tuple(dict.fromkeys(lines))[:_WARNINGS]
