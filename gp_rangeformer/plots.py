"""The figures of a comparison. One function per figure returns a matplotlib Figure; :func:`write_figures` saves them.

Colours are Okabe and Ito's, told apart by colour-blind readers, and a solver keeps its colour in every figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from gp_rangeformer import settings
from gp_rangeformer.compare.result import Comparison, SolverResult, Step
from gp_rangeformer.models import year_length

_COLOURS = {
    "reference": "#000000",
    "exact": "#009E73",
    "cholesky": "#E69F00",
    "cg": "#D55E00",
    "cg-tight": "#CC79A7",
    "rangeformer": "#0072B2",
    "rangeformer-direct": "#6A3D9A",
}
_FURTHER = ("#56B4E9", "#8C6BB1", "#7F5539", "#8A8A8A")
_STYLE: dict[str, dict[str, Any]] = {
    "reference": {"linestyle": (0, (4, 2)), "linewidth": 1.2, "zorder": 6},
    "rangeformer": {"linewidth": 2.2, "zorder": 4},
    "cg": {"linewidth": 1.4, "zorder": 3},
    "cg-tight": {"linewidth": 1.4, "zorder": 3},
    "cholesky": {"linewidth": 3.2, "zorder": 2, "alpha": 0.75},
    "exact": {"linewidth": 5.0, "zorder": 1, "alpha": 0.45},
}
_DPI = 150
_NORMAL_95 = 1.959964
# The last week of the CO2 record, 29 December 2001, as a decimal year; it is the last test row whatever n is.
_CO2_LAST_WEEK = 2001 + 362 / 365


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Every figure that the data allow, as 150 dpi PNG named after the data set. Returns the files written.

    A comparison that was interrupted gives the figures of what there is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        figure = draw(comparison)
        if figure is not None:
            path = folder / f"{Path(comparison.dataset.name).stem}-{name}.png"
            figure.savefig(path, dpi=_DPI)
            written.append(path)
    return written


# --------------------------------------------------------------------------------------------------------------------
# Figures


def likelihood(comparison: Comparison) -> Figure | None:
    """Log marginal likelihood per point over steps and over seconds, with RangeFormer's certified band."""
    shown = [result for result in comparison.results if len(result.steps) > 1 and not result.timing_only]
    if not shown:
        return None
    reference = comparison.reference
    figure = _figure(13, 4.4)
    left, middle, right = figure.subplots(1, 3)
    for result in shown:
        style = _line(comparison, result)
        steps = [step.step for step in result.steps]
        values = [step.value for step in result.steps]
        left.plot(steps, values, **style)
        right.plot(np.cumsum([step.seconds for step in result.steps]), values, **style)
        if reference is not None and not result.is_reference:
            middle.plot(*_difference(result, reference), **style)
    plugin = comparison.result("rangeformer")
    if plugin is not None and plugin in shown:
        steps = [step.step for step in plugin.steps]
        _bands(left, plugin.steps, steps)
        _bands(right, plugin.steps, list(np.cumsum([step.seconds for step in plugin.steps])))
        if reference is not None:
            shared = min(len(plugin.steps), len(reference.steps))
            truth = [step.value for step in reference.steps[:shared]]
            _bands(middle, plugin.steps[:shared], steps[:shared], truth)
    limits = _limits([[step.value for step in result.steps] for result in shown])
    for axes in (left, right):
        axes.set_ylim(*limits)
    left.set(xlabel="Adam step", ylabel="log p(y) / n  [nats per point]", title="as reported, over steps")
    middle.set(xlabel="Adam step", ylabel="difference  [nats per point]", title="minus the reference's, over steps")
    middle.set_yscale("symlog", linthresh=1e-3)
    middle.axhline(0, **{**_line(comparison, shown[0]), "label": None})
    right.set(xlabel="seconds of training", ylabel=left.get_ylabel(), title="as reported, over time", xscale="log")
    # Short labels and few of them: a short run spans less than a decade.
    right.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("{x:g}")
    for axes in (left, middle):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _title(figure, comparison, "Log marginal likelihood")
    _legend(figure, left)
    return figure


def _difference(result: SolverResult, reference: SolverResult) -> tuple[list[int], list[float]]:
    pairs = list(zip(result.steps, reference.steps, strict=False))
    return [step.step for step, _ in pairs], [step.value - other.value for step, other in pairs]


def hyperparameters(comparison: Comparison) -> Figure | None:
    """Every hyperparameter over the steps, one small panel each; the reference is dashed."""
    shown = [result for result in comparison.results if len(result.steps) > 1 and not result.timing_only]
    if not shown:
        return None
    names = list(shown[0].steps[0].hyperparameters)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(2.7 * columns + 0.4, 1.9 * rows + 1.2)
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    for axes, name in zip(panels, names, strict=False):
        values = [[step.hyperparameters[name] for step in result.steps] for result in shown]
        for result, curve in zip(shown, values, strict=True):
            axes.plot([step.step for step in result.steps], curve, **_line(comparison, result))
        axes.set_title(name.replace("_", " "), fontsize=9)
        if min(map(min, values)) > 0 and max(map(max, values)) > 8 * min(map(min, values)):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(names) - columns) : len(names)]:
        axes.set_xlabel("Adam step")
        axes.xaxis.set_tick_params(labelbottom=True)
    _title(figure, comparison, "Hyperparameters, standardised units")
    _legend(figure, panels[0])
    return figure


def predictions(comparison: Comparison) -> Figure | None:
    """One-dimensional data: predictions of the reference and of RangeFormer with 95 % bands, and their errors."""
    reference, plugin = comparison.reference, comparison.result("rangeformer")
    shown = [result for result in (reference, plugin) if result is not None and result.predictions is not None]
    if comparison.dataset.train_x.shape[1] != 1 or not shown:
        return None
    data = comparison.dataset
    axis, label, unit = _input_axis(comparison)
    train_x, test_x = axis(data.train_x[:, 0].numpy()), axis(data.test_x[:, 0].numpy())
    train_y, test_y = _original(comparison, data.train_y.numpy()), _original(comparison, data.test_y.numpy())
    order = np.argsort(test_x)
    figure = _figure(10, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    upper.scatter(train_x, train_y, s=5, color="#9A9A9A", linewidths=0, label="training data", zorder=1)
    upper.scatter(test_x, test_y, s=7, color="#444444", linewidths=0, label="test data", zorder=5)
    for result in shown:
        assert result.predictions is not None
        style = _line(comparison, result)
        mean = _original(comparison, np.array(result.predictions.mean))[order]
        margin = _NORMAL_95 * data.target_scale * np.array(result.predictions.deviation)[order]
        x = test_x[order]
        upper.plot(x, mean, **style)
        lower.plot(x, mean - test_y[order], **{**style, "label": None})
        for axes, centre in ((upper, mean), (lower, np.zeros_like(mean))):
            _margin(axes, x, centre, margin, style["color"], result is reference)
    if data.name == "co2":
        span = test_x.max() - test_x.min()
        upper.set_xlim(test_x.min() - 0.6 * span, test_x.max() + 0.02 * span)
        visible = np.concatenate([train_y[train_x > test_x.min() - 0.6 * span], test_y])
        room = 0.12 * np.ptp(visible)
        upper.set_ylim(visible.min() - room, visible.max() + 2 * room)
        for axes in (upper, lower):
            axes.axvline(test_x.min(), color="#B0B0B0", linewidth=0.8, zorder=0)
        upper.annotate(
            "forecast from here",
            (float(test_x.min()), 0.03),
            xytext=(4, 0),
            textcoords="offset points",
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color="#666666",
        )
    upper.set_ylabel(unit)
    lower.set(xlabel=label, ylabel=f"mean minus\nobserved [{unit.split('[')[-1].rstrip(']')}]")
    lower.axhline(0, color="#B0B0B0", linewidth=0.8, zorder=0)
    _title(figure, comparison, "Predictions with 95 % bands")
    _legend(figure, upper)
    return figure


def certificates(comparison: Comparison) -> Figure | None:
    """Certified residual against its tolerance, and the widths of the likelihood's intervals, over the steps."""
    shown = [
        result
        for result in comparison.results
        if result.base.startswith("rangeformer") and any(step.residual is not None for step in result.steps)
    ]
    if not shown:
        return None
    figure = _figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    for result in shown:
        style = _line(comparison, result)
        certified = [step for step in result.steps if step.residual is not None]
        steps = [step.step for step in certified]
        left.plot(steps, [step.residual for step in certified], **style)
        exact = [step for step in certified if step.answered_by == "exact"]
        if exact:
            left.plot(
                [step.step for step in exact],
                [step.residual for step in exact],
                linestyle="none",
                marker="o",
                markersize=6,
                markerfacecolor="white",
                markeredgecolor=style["color"],
                zorder=7,
                label="answered by the exact path" if result is shown[0] else None,
            )
        for kind, dash, name in (("interval", "-", "rigorous"), ("statistical", (0, (2, 1.5)), "statistical")):
            widths = [(step.step, _width(getattr(step, kind))) for step in certified]
            pairs = [(step, width) for step, width in widths if width is not None and width > 0]
            if pairs:
                x, y = zip(*pairs, strict=True)
                right.plot(x, y, **{**style, "linestyle": dash, "label": name})
                # The dash tells the kinds apart; naming them once is enough.
                if result is shown[0]:
                    _annotate(right, name, (x[-1], y[-1]), style["color"])
    tolerance = settings.tolerance.value()
    left.axhline(tolerance, color="#666666", linestyle=(0, (4, 2)), linewidth=1)
    left.annotate(
        f"tolerance {tolerance:g}",
        (0.01, tolerance),
        xytext=(0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    left.set(yscale="log", xlabel="Adam step", ylabel="largest relative residual", title="certified residual")
    right.set(yscale="log", xlabel="Adam step", ylabel="width  [nats per point]", title="intervals of log p(y) / n")
    # Room for the labels at the ends of the curves.
    last = max(step.step for result in shown for step in result.steps)
    right.set_xlim(-0.04 * last, 1.2 * last)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _title(figure, comparison, "Certificates of the plug-in")
    _legend(figure, left)
    return figure


def cost(comparison: Comparison) -> Figure | None:
    """Bars: seconds per step (median after the third), and peak memory of training."""
    shown = [result for result in comparison.results if result.steps]
    if not shown:
        return None
    names = [_display_name(result) for result in shown]
    figure = _figure(10, 0.42 * len(shown) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True)
    seconds = [result.summary()["seconds_per_step"] for result in shown]
    memory = [result.peak_memory for result in shown]
    colours = [_colour(comparison, result) for result in shown]
    for axes, values, form in ((left, seconds, _spoken_seconds), (right, memory, lambda value: f"{value:.0f}")):
        lengths = [0.0 if value is None else float(value) for value in values]
        axes.barh(names, lengths, color=colours, height=0.62)
        for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
            text = "not measured" if value is None else form(value)
            axes.annotate(text, (length, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.margins(x=0.16)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", length=0)
    left.invert_yaxis()
    left.set(xlabel="seconds per step (value, gradient, update)", title="time")
    right.set(xlabel="peak memory of training  [MiB]", title="memory")
    _title(figure, comparison, "Cost", grid="x")
    return figure


FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "likelihood": likelihood,
    "hyperparameters": hyperparameters,
    "predictions": predictions,
    "certificates": certificates,
    "cost": cost,
}


# --------------------------------------------------------------------------------------------------------------------
# Parts that figures share


def _figure(width: float, height: float) -> Figure:
    """Without pyplot: nothing is kept open, and no display is asked for."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, comparison: Comparison, title: str, grid: Literal["both", "x"] = "both") -> None:
    """The title, with what was compared, and the look that all panels share."""
    where = f"{comparison.dataset.name}, n = {comparison.n}, {comparison.kernel}, {comparison.dtype}"
    figure.suptitle(f"{title}: {where}", fontsize=11, x=0.01, ha="left")
    for axes in figure.axes:
        axes.title.set_fontsize(9.5)
        axes.tick_params(labelsize=8.5)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis=grid, color="#E6E6E6", linewidth=0.7)
        axes.set_axisbelow(True)


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the panels, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    # Inches that a label of this size takes, its line included.
    fitting = int(figure.get_figwidth() // (0.6 + 0.07 * max(map(len, labels))))
    rows = math.ceil(len(labels) / max(1, fitting))
    columns = math.ceil(len(labels) / rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def _display_name(result: SolverResult) -> str:
    name = result.name.replace("+", ", ").replace(":", ": ")
    return f"{name} ({result.dtype})" if result.is_reference else name


def _colour(comparison: Comparison, result: SolverResult) -> str:
    if result.name in _COLOURS:
        return _COLOURS[result.name]
    others = [other.name for other in comparison.results if other.name not in _COLOURS]
    return _FURTHER[others.index(result.name) % len(_FURTHER)]


def _line(comparison: Comparison, result: SolverResult) -> dict[str, Any]:
    """Curves that coincide stay visible: wide and pale below, thin above."""
    style = _STYLE.get(result.name, {"linewidth": 1.3, "zorder": 3})
    return {**style, "color": _colour(comparison, result), "label": _display_name(result), "solid_capstyle": "round"}


def _bands(axes: Axes, steps: Sequence[Step], x: Sequence[float], origin: Sequence[float] | None = None) -> None:
    """Both intervals of the likelihood at ``x``, minus ``origin``."""
    colour = _COLOURS["rangeformer"]
    for kind, alpha, label in (
        ("interval", 0.12, "rangeformer, rigorous interval"),
        ("statistical", 0.32, "rangeformer, statistical interval"),
    ):
        bounds = [getattr(step, kind) or (math.nan, math.nan) for step in steps]
        shift = origin if origin is not None else [0.0] * len(steps)
        lower = [low - at for (low, _), at in zip(bounds, shift, strict=True)]
        upper = [high - at for (_, high), at in zip(bounds, shift, strict=True)]
        if not all(math.isnan(value) for value in lower):
            axes.fill_between(x, lower, upper, color=colour, alpha=alpha, linewidth=0, label=label)


def _limits(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Room for the curves alone: the rigorous band may be many times wider, and is cut."""
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    low, high = min(values), max(values)
    room = 0.08 * (high - low or 1.0)
    return low - room, high + room


def _margin(axes: Axes, x: Any, centre: Any, margin: Any, colour: str, outline: bool) -> None:
    """A 95 % band: filled, or outlined where another one lies below it."""
    if outline:
        for side in (centre - margin, centre + margin):
            axes.plot(x, side, color=colour, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=6)
    else:
        axes.fill_between(x, centre - margin, centre + margin, color=colour, alpha=0.2, linewidth=0, zorder=0)


def _annotate(axes: Axes, text: str, point: tuple[float, float], colour: str) -> None:
    """A label to the right of the end of a curve."""
    axes.annotate(text, point, xytext=(5, 0), textcoords="offset points", fontsize=8, va="center", color=colour)


def _width(bounds: tuple[float, float] | None) -> float | None:
    return None if bounds is None else bounds[1] - bounds[0]


def _spoken_seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def _original(comparison: Comparison, standardised: Any) -> Any:
    return standardised * comparison.dataset.target_scale + comparison.dataset.target_mean


def _input_axis(comparison: Comparison) -> tuple[Callable[[Any], Any], str, str]:
    """How to draw the only input: a map of its standardised values, the axis label, and the target's label."""
    data = comparison.dataset
    if data.name != "co2":
        return (lambda x: x), f"{data.feature_names[0]} (standardised)", data.target_name
    year = year_length(data)
    last = float(data.test_x[:, 0].max())
    return (lambda x: _CO2_LAST_WEEK + (x - last) / year), "year", "CO2 at Mauna Loa  [ppm]"
