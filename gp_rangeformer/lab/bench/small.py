"""How long the fits of small data sets take, as BoTorch makes them: by the host alone, and with the flag on.

The host runs with the settings that ``import botorch`` leaves, whether BoTorch is there or not: Cholesky at every n, in
steps and predictions (GPyTorch alone goes to conjugate gradients above n = 800). The flag is on over the same settings,
with its own at their defaults, on the CPU. One model is asked by both in turn, in alternating order, each time at other
hyperparameters, the same for both, so that seconds compare and nothing can be remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from gp_rangeformer import clear_memory, collect_reports, settings
from gp_rangeformer.lab.bench.contenders import Clock
from gp_rangeformer.lab.bench.peers import Observer
from gp_rangeformer.lab.bench.resumed import PlanError, read_parts, whole_numbers
from gp_rangeformer.lab.bench.small_tasks import (
    CPU,
    FITS,
    TASKS,
    TEST_POINTS,
    CountingLikelihood,
    Plan,
    Step,
    botorch_conditions,
    floor_of,
    has_botorch,
)
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.instruments import PeakMemory
from gp_rangeformer.lab.compare.result import write_json

FORMAT = 1


@dataclass(frozen=True)
class Timing:
    """One task, by the host and with the flag on.

    :param host: seconds of every repetition; ``flag``: of the same ones.
    :param differences: |flag - host| / |host| of everything that the task returns, the largest over all repetitions.
    :param answered_by: the solvers in the flag's reports, with the reason where the plug-in left a call to GPyTorch.
    :param evaluations: of the likelihood in a fit, by the host and with the flag on; None elsewhere.
    """

    host: list[float]
    flag: list[float]
    differences: dict[str, float]
    answered_by: list[str]
    evaluations: list[int] | None = None

    @property
    def ratio(self) -> float:
        """How many times faster the flag is: the ratio of the medians."""
        return median(self.host) / median(self.flag)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and 90th percentile of that ratio within a pair."""
        ratios = [host / flag for host, flag in zip(self.host, self.flag, strict=True)]
        deciles = quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios
        return deciles[0], deciles[-1]

    def summary(self) -> dict[str, object]:
        medians = {"host_seconds": median(self.host), "flag_seconds": median(self.flag)}
        return {**medians, "ratio": self.ratio, "spread": self.spread}


@dataclass(frozen=True)
class Cell:
    """One size and batch.

    :param timings: by the names of :data:`TASKS`; ``fit`` of a single model, and where BoTorch is installed.
    :param peaks: of a step in MiB above what was held before, host and flag; None where they cannot be told.
    :param floor: median seconds of :func:`~gp_rangeformer.lab.bench.small_tasks.floor_of` a step; None: not measured.
    """

    n: int
    batch: int
    timings: dict[str, Timing]
    peaks: list[float | None]
    floor: float | None = None

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "summaries": {name: timing.summary() for name, timing in self.timings.items()}}

    @classmethod
    def from_json(cls, content: dict) -> Cell:
        timings = {name: Timing(**timing) for name, timing in content["timings"].items()}
        return cls(content["n"], content["batch"], timings, content["peaks"], content.get("floor"))


def time_pairs(task: Step, repetitions: int, patience: float) -> Timing:
    """Run ``task`` by the host and with the flag on, in turn. Where there are several pairs the first is not counted.

    :param repetitions: pairs that count, at most.
    :param patience: seconds after which no further pair is begun, once there are ``task.fewest``.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    read: dict[bool, dict[str, Tensor]] = {}
    counts: dict[bool, int] = {}
    differences: dict[str, float] = {}
    answered: set[str] = set()
    pairs, started = 0, time.perf_counter()
    while pairs <= repetitions and (pairs < task.fewest or time.perf_counter() - started < patience):
        task.renew()
        for flag in (False, True) if pairs % 2 else (True, False):
            task.prepare()
            with settings.rangeformer(flag), collect_reports() as reports, Clock(CPU) as clock:
                result = task.run()
            seconds[flag].append(clock.seconds)
            for report in reports:
                declined = f" ({report.reason.name})" if report.solver == "gpytorch" else ""
                answered.add(report.solver + declined)
            if isinstance(task.mll, CountingLikelihood):
                counts[flag] = task.mll.evaluations
            read[flag] = task.read(result)
        for name, host in read[False].items():
            difference = float((read[True][name] - host).norm() / host.norm())
            differences[name] = max(difference, differences.get(name, 0.0))
        pairs += 1
    first = min(1, pairs - 1)
    evaluations = [counts[False], counts[True]] if counts else None
    return Timing(seconds[False][first:], seconds[True][first:], differences, sorted(answered), evaluations)


def measure_cell(
    n: int, batch: int, plan: Plan, tasks: Sequence[str], patience: float, observer: Observer = lambda text: None
) -> Cell:
    """All figures of one size and batch.

    :param tasks: names of :data:`TASKS`; a fit needs BoTorch and a batch of 1.
    :param patience: seconds per figure, see :func:`time_pairs`.
    """
    timings = {}
    with botorch_conditions():
        for name in tasks:
            observer(f"n = {n}, batch {batch}: {name}")
            torch.manual_seed(plan.seed)
            timings[name] = time_pairs(TASKS[name](n, batch, plan), plan.repetitions, patience)
        step = Step(n, batch, plan)
        step.renew()
        floor = _floor(step, plan.repetitions, patience)
        return Cell(n, batch, timings, [_peak(step, flag) for flag in (False, True)], floor)


def _floor(step: Step, repetitions: int, patience: float) -> float:
    """As many repetitions as a step has, the first not counted."""
    run, seconds, started = floor_of(step), [], time.perf_counter()
    while len(seconds) <= repetitions and (len(seconds) < step.fewest or time.perf_counter() - started < patience):
        with Clock(CPU) as clock:
            run()
        seconds.append(clock.seconds)
    return median(seconds[1:])


def _peak(task: Step, flag: bool) -> float | None:
    clear_memory()
    task.prepare()
    memory = PeakMemory(CPU)
    memory.start()
    with settings.rangeformer(flag):
        task.run()
    return memory.peak()


def parse_counts(text: str, option: str, smallest: int) -> list[int]:
    """Ascending, each once.

    :raises PlanError: not whole numbers separated by commas, or one below ``smallest``.
    """
    counts = whole_numbers(text, option)
    if counts[0] < smallest:
        raise PlanError(f"{option} {text!r}: whole numbers from {smallest} on")
    return counts


def run(
    plan: Plan,
    sizes: Sequence[int],
    batches: Sequence[int],
    *,
    patience: float,
    path: Path | None = None,
    write: Callable[[Path, dict[str, object]], object] = write_json,
    observer: Observer = lambda text: None,
    show: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Measure every size with every batch, those that ``path`` has not yet, and write the file after each.

    :param show: called with every cell that has been measured.
    :raises PlanError: as :func:`~gp_rangeformer.lab.bench.resumed.read_parts`.
    """
    found = [] if path is None else read_parts(path, plan, "cells", Cell.from_json)
    known = {(cell.n, cell.batch): cell for cell in found}
    wanted = [(n, batch) for n in sizes for batch in batches]
    fits, described = has_botorch(), machine.describe()
    for n, batch in wanted:
        tasks = [name for name in TASKS if name not in FITS or (fits and batch == 1)]
        if (n, batch) in known and known[n, batch].timings.keys() >= set(tasks):
            continue
        known[n, batch] = measure_cell(n, batch, plan, tasks, patience, observer)
        show(known[n, batch])
        if path is not None:
            cells = [known[key] for key in sorted(known)]
            content = {
                "format": FORMAT,
                "plan": asdict(plan),
                "machine": described,
                "botorch": metadata.version("botorch") if fits else None,
                "test_points": TEST_POINTS,
                "settings": settings.current(),
                "sizes": sorted({cell.n for cell in cells}),
                "batches": sorted({cell.batch for cell in cells}),
                "cells": [cell.to_json() for cell in cells],
            }
            write(path, content)
    return [known[key] for key in wanted]
