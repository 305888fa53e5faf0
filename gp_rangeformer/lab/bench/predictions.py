"""What follows a fit: means and variances, functions, leave-one-out scores; by this package and by others.

The models have converged hyperparameters, where predictions are asked for and systems are worse conditioned than at a
start. Contenders follow one another, all calls of one before those of the next; each has a fresh model, and nothing is
remembered of the one before.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gp_rangeformer import clear_memory, predict, settings
from gp_rangeformer.lab.bench.memory import freed_at_once
from gp_rangeformer.lab.bench.optima import KERNEL
from gp_rangeformer.lab.bench.peers import Observer
from gp_rangeformer.lab.bench.prediction_calls import Row, measure_row
from gp_rangeformer.lab.bench.prediction_contenders import CONTENDERS, FLAG, HOST, HOST_WHOLE
from gp_rangeformer.lab.bench.prediction_data import Fitted, load_fitted
from gp_rangeformer.lab.bench.prediction_exact import ExactModel, ExactPredictions
from gp_rangeformer.lab.bench.prediction_further import NEEDED, Further, measure_further
from gp_rangeformer.lab.bench.prediction_left_out import LeftOut, measure_left_out
from gp_rangeformer.lab.bench.prediction_paths import Paths, measure_paths
from gp_rangeformer.lab.bench.resumed import PlanError, read_parts
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json

FORMAT = 1
AUDITED = 8000  # n up to which errors are known
SMALL = 100  # training points of the small model
_WARM_UP, _WARM_UP_POINTS = 200, 50


@dataclass(frozen=True)
class Plan:
    """What decides the numbers of a run; two runs share a file if their plans are equal.

    :param t: test points, and ``few``: of the second number of them; ``wide``: of the small model.
    :param paths: functions that are drawn.
    :param threads: of torch.
    :param block: test points that GPyTorch is given at once; None: all of them, as in files without this number.
    """

    t: int
    few: int
    wide: int
    paths: int
    dtype: str
    seed: int
    threads: int
    block: int | None = None

    def __post_init__(self) -> None:
        if self.few >= self.t:
            raise PlanError(f"--few {self.few}: fewer test points than --t {self.t}")

    @property
    def sizes(self) -> tuple[int, int]:
        return self.t, self.few


@dataclass(frozen=True)
class Cell:
    """One model: a set and so many of its rows.

    :param points: what the test inputs are, in words.
    :param noise: variance, in units of the standardised target.
    :param paths, left_out: none of the small model.
    """

    dataset: str
    n: int
    d: int
    points: str
    noise: float
    rows: tuple[Row, ...]
    paths: tuple[Paths, ...] = ()
    left_out: LeftOut | None = None

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Cell:
        parts = {
            "rows": tuple(Row.from_json(row) for row in content["rows"]),
            "paths": tuple(Paths.from_json(one) for one in content["paths"]),
            "left_out": None if content["left_out"] is None else LeftOut.from_json(content["left_out"]),
        }
        return cls(**{**content, **parts})

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure_cell(name: str, fitted: Fitted, plan: Plan, observer: Observer = lambda text: None) -> Cell:
    """Everything of one model."""
    model = exact = None
    if fitted.n <= AUDITED:
        observer(f"{name}, n = {fitted.n:,}: exact values")
        model = ExactModel(fitted)
        exact = ExactPredictions(model, fitted.data.test_x)
    rows = []
    for contender in CONTENDERS:
        observer(f"{name}, n = {fitted.n:,}: {contender.name}")
        rows.append(measure_row(contender, fitted, plan.sizes, exact))
    observer(f"{name}, n = {fitted.n:,}: paths")
    paths = measure_paths(fitted, plan.paths, plan.t, exact)
    observer(f"{name}, n = {fitted.n:,}: leave-one-out")
    return _cell(name, fitted, rows, paths, measure_left_out(fitted, model))


def measure_small(name: str, fitted: Fitted, plan: Plan, observer: Observer = lambda text: None) -> Cell:
    """A hundred training points and many test points, with the flag and without; a quarter of the latter too, which
    GPyTorch is also given at once."""
    observer(f"{name}, n = {fitted.n}, t = {plan.wide:,}")
    sizes = (plan.wide // 4, plan.wide)
    exact = ExactPredictions(ExactModel(fitted), fitted.data.test_x)
    rows = [measure_row(contender, fitted, sizes, exact) for contender in (FLAG, HOST)]
    rows.append(measure_row(HOST_WHOLE, fitted, sizes[:1], exact))
    return _cell(name, fitted, rows)


def measure_more(name: str, fitted: Fitted, plan: Plan, observer: Observer = lambda text: None) -> Further:
    """A few observations more, time after time."""
    del plan
    observer(f"{name}, n = {fitted.n:,}: further observations")
    return measure_further(name, fitted, AUDITED)


def _cell(name: str, fitted: Fitted, rows: Sequence[Row], *rest: Any) -> Cell:
    model: Any = fitted.build()
    noise, d = model.likelihood.noise.item(), fitted.data.train_x.shape[1]
    return Cell(name, fitted.n, d, fitted.describe_points(), noise, tuple(rows), *rest)


def warm_up(fitted: Fitted) -> None:
    """What only the first calls of a process pay for: compiled code, imports."""
    small = fitted.some(min(_WARM_UP, fitted.n))
    points = small.data.test_x[:_WARM_UP_POINTS]
    # Entered once: the first contender too meets the allocator as a measurement of memory leaves it.
    with freed_at_once(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for contender in CONTENDERS:
            # Who fails here fails again, and is told then.
            with contextlib.suppress(Exception):
                contender.build(small)(points)
        # Estimated variances too, which few points and few rows do not need.
        with settings.min_size(1), settings.solver(variances="estimated"):
            FLAG.build(small)(points)
        predict.sample_paths(small.build(), 2)(points)
    clear_memory()


def run(
    plan: Plan,
    sets: Sequence[str],
    sizes: Sequence[int],
    *,
    path: Path | None = None,
    write: Callable[[Path, dict[str, object]], object] = write_json,
    data_dir: Path | None = None,
    observer: Observer = lambda text: None,
    show: Callable[[Cell | Further], None] = lambda part: None,
) -> tuple[list[Cell], list[Cell], list[Further]]:
    """Measure every set at every size, and the first set's small model, what ``path`` has not yet; write the file after
    each. Returns the cells that were asked for, the small one's, and further observations of the models of the former.

    :param show: called with everything that has been measured.
    :raises PlanError, DatasetError: as :func:`~gp_rangeformer.lab.bench.resumed.read_parts` and
        :func:`~gp_rangeformer.lab.bench.prediction_data.load_fitted`.
    """
    kinds: dict[str, Any] = {"cells": Cell, "small": Cell, "further": Further}
    parts: dict[str, list[Any]] = {key: [] for key in kinds}
    if path is not None:
        parts = {key: read_parts(path, plan, key, kind.from_json) for key, kind in kinds.items()}
    dtype, described = getattr(torch, plan.dtype), machine.describe()
    several = 2 * sum(plan.sizes)
    wanted: list[tuple[str, str, int, int, Callable[..., Any]]] = []
    for name in sets:
        for n in sizes:
            wanted.append(("cells", name, n, several, measure_cell))
            wanted.append(("further", name, n, max(several, NEEDED), measure_more))
    wanted.append(("small", sets[0], SMALL, 4 * plan.wide, measure_small))
    warm = False
    for key, name, n, points, measure in wanted:
        if any((cell.dataset, cell.n) == (name, n) for cell in parts[key]):
            continue
        fitted = load_fitted(name, n, points, dtype=dtype, seed=plan.seed, data_dir=data_dir)
        if not warm:
            observer("warming up")
            warm_up(fitted)
            warm = True
        parts[key].append(measure(name, fitted, plan, observer))
        show(parts[key][-1])
        if path is not None:
            content = {"format": FORMAT, "plan": asdict(plan), "machine": described, "kernel": KERNEL}
            cells = {key: [cell.to_json() for cell in found] for key, found in parts.items()}
            write(path, {**content, "settings": settings.current(), **cells})
    asked, more = (
        [part for part in parts[key] if part.dataset in sets and part.n in sizes] for key in ("cells", "further")
    )
    return asked, [cell for cell in parts["small"] if cell.dataset == sets[0]], more
