"""The figure of one-dimensional data: what was predicted, how surely, and how wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gp_rangeformer.lab.compare.result import Comparison
from gp_rangeformer.lab.models import year_length
from gp_rangeformer.lab.plots.appearance import add_legend, add_title, line
from gp_rangeformer.lab.plots.style import new_figure

_NORMAL_95 = 1.959964
# The last week of the CO2 record, 29 December 2001, as a decimal year; it is the last test row whatever n is.
_CO2_LAST_WEEK = 2001 + 362 / 365


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
    figure = new_figure(10, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    upper.scatter(train_x, train_y, s=5, color="#9A9A9A", linewidths=0, label="training data", zorder=1)
    upper.scatter(test_x, test_y, s=7, color="#444444", linewidths=0, label="test data", zorder=5)
    for result in shown:
        assert result.predictions is not None
        style = line(comparison, result)
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
    add_title(figure, comparison, "Predictions with 95 % bands")
    add_legend(figure, upper)
    return figure


def _margin(axes: Axes, x: Any, centre: Any, margin: Any, colour: str, outline: bool) -> None:
    """A 95 % band: filled, or outlined where another one lies below it."""
    if outline:
        for side in (centre - margin, centre + margin):
            axes.plot(x, side, color=colour, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=6)
    else:
        axes.fill_between(x, centre - margin, centre + margin, color=colour, alpha=0.2, linewidth=0, zorder=0)


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
