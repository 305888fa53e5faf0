"""The figure of what a comparison cost."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gp_rangeformer.lab.compare.result import Comparison
from gp_rangeformer.lab.plots.appearance import add_title, colour, display_name
from gp_rangeformer.lab.plots.style import new_figure


def cost(comparison: Comparison) -> Figure | None:
    """Bars: seconds per step (median after the third), and peak memory of training."""
    shown = [result for result in comparison.results if result.steps]
    if not shown:
        return None
    names = [display_name(result) for result in shown]
    figure = new_figure(10, 0.42 * len(shown) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True)
    seconds = [result.summary()["seconds_per_step"] for result in shown]
    memory = [result.peak_memory for result in shown]
    colours = [colour(comparison, result) for result in shown]
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
    add_title(figure, comparison, "Cost", grid="x")
    return figure


def _spoken_seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
