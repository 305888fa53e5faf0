"""Figures over the steps of a training: the likelihood, the hyperparameters, the certificates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from gp_rangeformer import settings
from gp_rangeformer.lab.compare.result import Comparison, SolverResult, Step
from gp_rangeformer.lab.plots.appearance import add_legend, add_title, line
from gp_rangeformer.lab.plots.style import SOLVER_COLOURS, new_figure


def likelihood(comparison: Comparison) -> Figure | None:
    """Log marginal likelihood per point over steps and over seconds, with RangeFormer's certified band; whole fits over
    seconds alone, because their steps are others."""
    shown = [result for result in comparison.results if len(result.steps) > 1 and not result.timing_only]
    if not shown:
        return None
    reference = comparison.reference
    figure = new_figure(13, 4.4)
    left, middle, right = figure.subplots(1, 3)
    for result in shown:
        style = line(comparison, result)
        steps = [step.step for step in result.steps]
        values = [step.value for step in result.steps]
        right.plot(np.cumsum([step.seconds for step in result.steps]), values, **style)
        if result.converges:
            continue
        left.plot(steps, values, **style)
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
    by_adam = [step.value for result in shown if not result.converges for step in result.steps]
    left.set_ylim(*_limits(by_adam))
    # A line search may look far below the start.
    right.set_ylim(*_limits([*by_adam, *(max(step.value for step in result.steps) for result in shown)]))
    left.set(xlabel="Adam step", ylabel="log p(y) / n  [nats per point]", title="as reported, over steps")
    middle.set(xlabel="Adam step", ylabel="difference  [nats per point]", title="minus the reference's, over steps")
    middle.set_yscale("symlog", linthresh=1e-3)
    middle.axhline(0, **{**line(comparison, shown[0]), "label": None})
    right.set(xlabel="seconds of training", ylabel=left.get_ylabel(), title="as reported, over time", xscale="log")
    # Short labels and few of them: a short run spans less than a decade.
    right.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("{x:g}")
    for axes in (left, middle):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_title(figure, comparison, "Log marginal likelihood")
    add_legend(figure, right)
    return figure


def hyperparameters(comparison: Comparison) -> Figure | None:
    """Every hyperparameter over Adam's steps, one small panel each; the reference is dashed."""
    shown = [
        result
        for result in comparison.results
        if len(result.steps) > 1 and not result.timing_only and not result.converges
    ]
    if not shown:
        return None
    names = list(shown[0].steps[0].hyperparameters)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(2.7 * columns + 0.4, 1.9 * rows + 1.2)
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    for axes, name in zip(panels, names, strict=False):
        values = [[step.hyperparameters[name] for step in result.steps] for result in shown]
        for result, curve in zip(shown, values, strict=True):
            axes.plot([step.step for step in result.steps], curve, **line(comparison, result))
        axes.set_title(name.replace("_", " "), fontsize=9)
        if min(map(min, values)) > 0 and max(map(max, values)) > 8 * min(map(min, values)):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(names) - columns) : len(names)]:
        axes.set_xlabel("Adam step")
        axes.xaxis.set_tick_params(labelbottom=True)
    add_title(figure, comparison, "Hyperparameters, standardised units")
    add_legend(figure, panels[0])
    return figure


def certificates(comparison: Comparison) -> Figure | None:
    """Certified residual against its tolerance, and the widths of the likelihood's intervals, over the steps."""
    shown = [
        result
        for result in comparison.results
        if result.base in ("rangeformer", "rangeformer-direct")
        and any(step.residual is not None for step in result.steps)
    ]
    if not shown:
        return None
    figure = new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    for result in shown:
        style = line(comparison, result)
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
    tolerance = settings.solver.value().tolerance
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
    add_title(figure, comparison, "Certificates of the plug-in")
    add_legend(figure, left)
    return figure


def _difference(result: SolverResult, reference: SolverResult) -> tuple[list[int], list[float]]:
    pairs = list(zip(result.steps, reference.steps, strict=False))
    return [step.step for step, _ in pairs], [step.value - other.value for step, other in pairs]


def _bands(axes: Axes, steps: Sequence[Step], x: Sequence[float], origin: Sequence[float] | None = None) -> None:
    """Both intervals of the likelihood at ``x``, minus ``origin``."""
    colour = SOLVER_COLOURS["rangeformer"]
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


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Room for the curves alone: the rigorous band may be many times wider, and is cut."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = 0.08 * (high - low or 1.0)
    return low - room, high + room


def _annotate(axes: Axes, text: str, point: tuple[float, float], colour: str) -> None:
    """A label to the right of the end of a curve."""
    axes.annotate(text, point, xytext=(5, 0), textcoords="offset points", fontsize=8, va="center", color=colour)


def _width(bounds: tuple[float, float] | None) -> float | None:
    return None if bounds is None else bounds[1] - bounds[0]
