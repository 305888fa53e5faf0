"""The tables of the benchmark: one per size, and one of growth."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import torch

from gp_rangeformer.lab.bench.entrants import FLOORS
from gp_rangeformer.lab.bench.floors import FLOOR
from gp_rangeformer.lab.bench.growth import ASYMPTOTIC, exponent
from gp_rangeformer.lab.bench.peer_run import Plan
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.bench.replay import WARM_UP, ratio
from gp_rangeformer.lab.grid import Grid

PLUGIN = "rangeformer"
_NONE = "-"
_HEADERS = (
    "contender",
    "s/step",
    "/ floor",
    "rangeformer\nfaster",
    "first\ncall s",
    "value\nerror",
    "gradient\nerror",
    "passes",
    "peak\nMiB",
    "peak\n/ K",
    "cores",
)


def matrix_mib(n: int, dtype: str) -> float:
    """One n x n matrix in ``dtype``, in MiB."""
    return n * n * getattr(torch, dtype).itemsize / 2**20


def relative_seconds(size: Size, reference: str) -> dict[str, float]:
    """Seconds of every complete contender over those of ``reference``, taken within steps; empty without it."""
    base = size.row(reference)
    if base is None or not base.complete:
        return {}
    return {row.name: ratio(row.outcome, base.outcome) for row in size.rows if row.complete}


def size_table(size: Size, plan: Plan) -> Grid:
    """Every contender at one n."""
    plugin = next((row.name for row in size.rows if row.name.partition(":")[0] == PLUGIN), PLUGIN)
    over_floor, over_plugin = relative_seconds(size, FLOOR), relative_seconds(size, plugin)
    matrix = matrix_mib(size.n, plan.dtype)
    rows = tuple(_cells(row, over_floor.get(row.name), over_plugin.get(row.name), matrix) for row in size.rows)
    title = f"n = {size.n}: {plan.dataset}, d = {size.d}, kernel {size.kernel}{plan.place}"
    return Grid(title, _HEADERS, rows, tuple(_notes(size, plan, matrix)))


def _cells(row: Row, over_floor: float | None, over_plugin: float | None, matrix: float) -> tuple[str, ...]:
    found = row.outcome.summary()
    passes = found["passes"]
    measured = (
        _number(row.seconds(), _seconds),
        _number(over_floor, lambda value: f"{value:.2f}"),
        _number(over_plugin, lambda value: f"{value:.2f}x"),
        _number(row.first_call, _seconds),
        _number(found["value_error"], _small),
        _number(found["gradient_error"], _percent),
        _number(passes or None, lambda value: f"{value:.1f}"),
        _number(row.peak, lambda value: f"{value:.0f}"),
        _number(None if row.peak is None else row.peak / matrix, lambda value: f"{value:.2f}"),
        _number(row.outcome.cores(), lambda value: f"{value:.1f}"),
    )
    return (row.name, *(measured if row.complete else [_NONE] * len(measured)))


def _notes(size: Size, plan: Plan, matrix: float) -> list[str]:
    threads = os.environ.get("OMP_NUM_THREADS")
    own = f"OMP_NUM_THREADS={threads}" if threads else "all cores, OMP_NUM_THREADS is not set"
    notes = [
        f"{plan.dtype}, seed {plan.seed}, {plan.steps} Adam steps, torch threads: {size.threads}; {size.machine}",
        f"s/step: value and gradient, median after step {WARM_UP}, contenders in turn at the same hyperparameters",
        "/ floor, rangeformer faster: seconds over the floor's, over rangeformer's, within a step",
        "first call: the first step in the process, the floors before the others",
        "errors: nats per point, and relative, against exact float64 at the same hyperparameters; means",
        f"peak: above what was held before, one contender alive at a time; K: {matrix:.3g} MiB in {plan.dtype}",
        "cores: processor seconds over wall-clock seconds of those steps; below 1 on a CPU: the machine was shared, "
        "which may cost long steps more than short ones",
        *(f"{floor.name}: {floor.description}" for floor in FLOORS),
    ]
    if size.row("gpflash") is not None:
        notes.append(f"gpflash: float64; its own threads, {own}; its gradient error leaves out the mean's derivative")
    if size.row("keops") is not None:
        notes.append("keops: compiles at its first call on a machine and keeps the result on disk for later runs")
    for row in size.rows:
        if row.outcome.left_out is not None:
            notes.append(f"{row.name}: left out: {row.outcome.left_out}")
        if row.outcome.fallbacks:
            notes.append(f"{row.name}: fell back to the exact path {row.outcome.fallbacks} times")
        notes.extend(f"{row.name}: {count} x {note}" for note, count in row.outcome.notes.items())
    return notes


def growth_table(sizes: Sequence[Size], plan: Plan) -> Grid:
    """Seconds per step over n, with the exponents of seconds and peak memory."""
    names = list(dict.fromkeys(row.name for size in sizes for row in size.rows))
    rows = []
    for name in names:
        seconds, peaks = series(sizes, name, Row.seconds), series(sizes, name, lambda row: row.peak)
        cells = [_number(seconds.get(size.n), _seconds) for size in sizes]
        fits = [_number(exponent(values), lambda value: f"{value:.2f}") for values in (seconds, peaks)]
        rows.append((name, *cells, *fits))
    headers = ("contender", *(f"n =\n{size.n}" for size in sizes), "s ~ n^p\np", "MiB ~ n^p\np")
    notes = (
        f"seconds per step; p: least squares on logarithms, over n >= {ASYMPTOTIC} where two sizes are",
        "sizes ran one after another: compare their seconds only where the cores of their tables agree",
    )
    return Grid(f"Growth: {plan.dataset}, {plan.dtype}{plan.place}", headers, tuple(rows), notes)


def series(sizes: Sequence[Size], name: str, value: Callable[[Row], float | None]) -> dict[int, float]:
    """What ``value`` says of one contender, by n, where it was measured and is positive."""
    found = {size.n: value(row) for size in sizes if (row := size.row(name)) is not None and row.complete}
    return {n: number for n, number in found.items() if number is not None and number > 0}


def _number(value: float | None, form: Callable[[float], str]) -> str:
    return _NONE if value is None or math.isnan(value) else form(value)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _small(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if value >= 5e-4 else f"{value:.0e}"
