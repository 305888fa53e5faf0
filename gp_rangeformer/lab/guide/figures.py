"""The figures of README and guide: seconds a step against n. Each carries a digest of the numbers that it shows."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.bench.floors import FLOOR, HOST_FLOOR
from gp_rangeformer.lab.bench.peer_figures import spread
from gp_rangeformer.lab.guide.fits import fits_figure
from gp_rangeformer.lab.guide.peers import CG, CHOLESKY, PLUGIN, RECOMPUTED, series_by_name
from gp_rangeformer.lab.guide.results import Results
from gp_rangeformer.lab.plots.style import DPI, SOLVER_COLOURS, dress, new_figure

WITHOUT = "rangeformer, landmarks alone"
Lines = Mapping[str, Mapping[Any, Any]]

_LABELS = {
    CHOLESKY: "GPyTorch, Cholesky",
    "cg-tight": "GPyTorch, CG (tight)",
    CG: "GPyTorch, CG (default)",
    "gpflash": "gpflash (float64)",
    "exact": "exact path of this package",
    RECOMPUTED: "RangeFormer, K recomputed",
    PLUGIN: "RangeFormer",
    WITHOUT: "without neighbours",
    FLOOR: "floor: K and its gradient",
    HOST_FLOOR: "GPyTorch's kernel code alone",
}
_COLOURS = {
    **SOLVER_COLOURS,
    WITHOUT: "#56B4E9",
    RECOMPUTED: "#56B4E9",
    "gpflash": "#7F5539",
    FLOOR: "#222222",
    HOST_FLOOR: "#8A8A8A",
}
_GAP = 0.062  # between labels, as a share of the axes' height
_DIGEST = "Description"


def peers_figure(results: Results) -> tuple[Figure, Lines]:
    """Everybody who solves; the floors are in the table."""
    run = results.peers
    lines = {name: found for name, found in series_by_name(run).items() if name not in (FLOOR, HOST_FLOOR)}
    what = f"{run.plan.dataset}, d = {run.sizes[0].d}, {run.plan.dtype}, {run.sizes[0].threads} CPU threads"
    return _draw(lines, f"Seconds of one training step of an exact GP ({what})"), lines


def growth_figure(results: Results) -> tuple[Figure, Lines]:
    """The plug-in and the floors, as far as memory goes."""
    run = results.growth
    lines = series_by_name(run)
    what = f"{run.plan.dataset}, d = {run.sizes[0].d}, {run.plan.dtype}, {run.sizes[0].threads} CPU threads"
    return _draw(lines, f"Seconds of one training step, RangeFormer alone ({what})"), lines


def fit_figure(results: Results) -> tuple[Figure, Lines]:
    """Step by step along a fit, with neighbours and without: medians of five steps."""
    run = results.fit
    size = run.sizes[0]
    lines = {}
    for name, label in ((CHOLESKY, CHOLESKY), ("rangeformer:neighbours=0", WITHOUT), (PLUGIN, PLUGIN)):
        row = size.row(name)
        if row is not None and row.complete:
            seconds = row.outcome.seconds
            lines[label] = {step: median(seconds[step - 2 : step + 3]) for step in range(2, len(seconds) - 2)}
    what = f"{run.plan.dataset}, n = {size.n:,}, d = {size.d}, {run.plan.dtype}, {size.threads} CPU threads"
    return _draw(lines, f"Seconds of every step of a fit ({what})", "Adam step"), lines


FIGURES: dict[str, Callable[[Results], tuple[Figure, Lines]]] = {
    "seconds-per-step.png": peers_figure,
    "seconds-growth.png": growth_figure,
    "seconds-along-a-fit.png": fit_figure,
    "fits.png": fits_figure,
}


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Draw them into ``folder``. Returns those that were written: one that shows these numbers already is kept, so that
    another version of matplotlib does not change it.

    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    written = []
    for path in stale_figures(results, folder):
        figure, lines = FIGURES[path.name](results)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI, metadata={_DIGEST: digest(lines)})
        write_bytes(path, content.getvalue())
        written.append(path)
    return written


def stale_figures(results: Results, folder: Path) -> list[Path]:
    """Those that are missing or show other numbers than the result files hold."""
    found = {folder / name: draw(results)[1] for name, draw in FIGURES.items()}
    return [
        path for path, lines in found.items() if not path.is_file() or digest(lines).encode() not in path.read_bytes()
    ]


def digest(lines: Lines) -> str:
    """Of the numbers of a figure."""
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()


def _draw(lines: Lines, title: str, steps: str | None = None) -> Figure:
    """Against n, or against what ``steps`` says."""
    figure = new_figure(8.2, 4.6)
    figure.set_layout_engine("constrained", w_pad=0.08)
    axes = figure.subplots()
    for name, values in lines.items():
        own = name in (PLUGIN, RECOMPUTED)
        axes.plot(
            list(values),
            list(values.values()),
            color=_COLOURS[name],
            marker="" if steps else "o",
            markersize=5 if name == PLUGIN else 4,
            linewidth=3 if name == PLUGIN else 1.6,
            linestyle="--" if name in (FLOOR, HOST_FLOOR, RECOMPUTED) else "-",
            zorder=5 if own else 3,
        )
    axes.set(yscale="log", xlabel=steps or "training points n")
    if steps is None:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({n for values in lines.values() for n in values})))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    dress(axes)
    axes.tick_params(labelsize=10)
    axes.xaxis.label.set_fontsize(10)
    _label(axes, lines)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def _label(axes: Axes, lines: Lines) -> None:
    """Every line's name at the right, at the height of its end; a leader where the line ends earlier."""
    low, high = (log(limit) for limit in axes.get_ylim())
    last = max(n for values in lines.values() for n in values)
    ends = {name: max(values) for name, values in lines.items()}
    heights = spread([(log(lines[name][end]) - low) / (high - low) for name, end in ends.items()], _GAP)
    for (name, end), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            _LABELS.get(name, name),
            (end, lines[name][end]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            fontsize=10.5,
            fontweight="bold" if name == PLUGIN else "normal",
            va="center",
            color=_COLOURS[name],
            arrowprops={
                "arrowstyle": "-",
                "color": _COLOURS[name],
                "linewidth": 0.8,
                "linestyle": "-" if end == last else ":",
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )
