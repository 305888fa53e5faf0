"""Three figures: error per rung, error over loops, cost over n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretrain.experiments.interventions.evaluation import COLUMNS, HELD_OUT, Protocol
from pretrain.experiments.interventions.ladder import LADDER

# Okabe and Ito's; a rung keeps its colour.
_COLOURS = dict(zip(LADDER, ("#8A8A8A", "#E69F00", "#D55E00", "#CC79A7", "#009E73", "#0072B2"), strict=True))
_UNITS = {
    "trace": "|error| / |trace|",
    "lambda_max": "|error| / lambda_max",
    "logdet": "|error| / n  [nats per point]",
    "solve": "|b - A x| / |b|",
}


def error_figure(summary: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """Grouped bars, one panel per task: the median error of every rung in every column, with the spread over seeds.

    "In distribution" and the sizes are on a rung's own training distribution. A missing bar does not fit.
    """
    tasks = [task for task in _UNITS if any(task in entry for entry in summary.values())]
    figure = _figure(15, 3.4 * len(tasks) + 0.6)
    for axes, task in zip(np.atleast_1d(figure.subplots(len(tasks), 1)), tasks, strict=True):
        rungs = [rung for rung in LADDER if task in summary.get(rung, {})]
        width = 0.84 / len(rungs)
        for index, rung in enumerate(rungs):
            entries = [summary[rung][task][column] for column in COLUMNS]
            places = np.arange(len(COLUMNS)) + (index - (len(rungs) - 1) / 2) * width
            axes.bar(
                places,
                [entry.get("mean", math.nan) for entry in entries],
                width,
                yerr=[entry.get("spread") or 0.0 for entry in entries],
                color=_COLOURS[rung],
                label=LADDER[rung].change,
                error_kw={"linewidth": 0.8},
            )
        axes.set_xticks(range(len(COLUMNS)), COLUMNS)
        axes.set(yscale="log", ylabel=_UNITS[task], title=task)
        axes.grid(axis="y", alpha=0.3)
    _legend(figure, figure.axes[0])
    return figure


def loop_figure(results: Sequence[dict[str, Any]], protocol: Protocol) -> Figure | None:
    """Median error over loops of the looped rungs: at home, at a larger size, held out, and on files. The grey line is
    the depth of training. None if no rung is looped.
    """
    looped = [result for result in results if LADDER[result["rung"]].looped]
    if not looped:
        return None
    tasks = [task for task in _UNITS if any(task in result["tasks"] for result in looped)]
    views = (f"own distribution, n = {protocol.home}", f"own, n = {protocol.loop_size}", "held out", "Matrix Market")
    figure = _figure(15, 3 * len(tasks) + 0.6)
    grid = figure.subplots(len(tasks), len(views), squeeze=False)
    for row, task in zip(grid, tasks, strict=True):
        for index, (axes, view) in enumerate(zip(row, views, strict=True)):
            for rung in LADDER:
                curves = [
                    record["median"]
                    for result in looped
                    if result["rung"] == rung
                    for record in result["errors"]
                    if record["task"] == task and record["fits"] and _in_view(record, index, rung, protocol)
                ]
                if curves:
                    _curve(axes, curves, rung)
            axes.axvline(looped[0]["depth"], color="#B0B0B0", linewidth=0.8, zorder=0)
            axes.set(title=f"{task}: {view}", xlabel="loops", yscale="log")
            axes.grid(alpha=0.3)
        row[0].set_ylabel(_UNITS[task])
    _legend(figure, grid[0][0])
    return figure


def cost_figure(costs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Seconds and peak bytes of one forward pass over n, both axes logarithmic."""
    figure = _figure(13, 4.4)
    left, right = figure.subplots(1, 2)
    for rung, records in costs.items():
        fitting = [record for record in records if record["fits"]]
        for axes, key in ((left, "seconds"), (right, "peak_bytes")):
            axes.plot(
                [record["n"] for record in fitting],
                [record[key] for record in fitting],
                marker="o",
                markersize=4,
                color=_COLOURS[rung],
                label=LADDER[rung].change,
            )
    for axes, label in ((left, "seconds, forward, batch 1"), (right, "peak of allocations [bytes]")):
        axes.set(xscale="log", yscale="log", xlabel="n", ylabel=label)
        axes.grid(alpha=0.3, which="both")
    _legend(figure, left)
    return figure


def _in_view(record: dict[str, Any], view: int, rung: str, protocol: Protocol) -> bool:
    distribution, size = record["distribution"], record["n"]
    own = distribution == LADDER[rung].data
    return (
        own and size == protocol.home,
        own and size == protocol.loop_size,
        distribution in HELD_OUT and size == protocol.home,
        distribution == "market",
    )[view]


def _curve(axes: Axes, curves: Sequence[Sequence[float]], rung: str) -> None:
    """The median over the curves, which are seeds, families or files: errors on files span decades."""
    values = np.median(np.array(curves, dtype=float), axis=0)
    axes.plot(range(1, len(values) + 1), values, color=_COLOURS[rung], label=LADDER[rung].change, marker=".")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
