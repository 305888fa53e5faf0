"""Figures of calibration: whether intervals contain as many targets as they say."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gp_rangeformer.lab.model_report.drawing import GREY, PALE, new_panel
from gp_rangeformer.lab.plots.style import BLUE
from gp_rangeformer.predict.leave_one_out import LeaveOneOut

_BINS = 20
_DEVIATIONS = 2.0


def coverage_figure(scores: LeaveOneOut) -> Figure:
    """The share of targets inside their central interval, against the share that its level promises."""
    figure, axes = new_panel()
    level = np.linspace(0, 1, 201)
    inside = np.sort(2 * np.abs(scores.pit.cpu().numpy() - 0.5))  # the level of the interval that just contains y
    n = len(inside)
    margin = _DEVIATIONS * np.sqrt(level * (1 - level) / n)
    axes.fill_between(level, level - margin, level + margin, color=PALE, alpha=0.35, linewidth=0)
    axes.plot(level, level, color=GREY, linewidth=1, linestyle=(0, (4, 2)), label="calibrated, with two deviations")
    axes.plot(level, np.searchsorted(inside, level, side="right") / n, color=BLUE, linewidth=1.8, label="this model")
    marked = scores.coverage
    axes.plot([one.level for one in marked], [one.share for one in marked], "o", color=BLUE, markersize=5)
    axes.set(xlabel="level of the interval", ylabel="share of rows inside", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def histogram_figure(scores: LeaveOneOut) -> Figure:
    """Where targets lie in their predictive distributions: flat for a calibrated model."""
    figure, axes = new_panel()
    pit = scores.pit.cpu().numpy()
    n, share = len(pit), 1 / _BINS
    counts, edges = np.histogram(pit, bins=_BINS, range=(0, 1))
    expected, margin = n * share, _DEVIATIONS * math.sqrt(n * share * (1 - share))
    axes.bar(edges[:-1], counts, width=share, align="edge", color=BLUE, alpha=0.75, edgecolor="white", linewidth=0.6)
    axes.axhspan(max(expected - margin, 0), expected + margin, color=PALE, alpha=0.45, linewidth=0, zorder=3)
    line = axes.axhline(expected, color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=4)
    band = Patch(color=PALE, alpha=0.45, linewidth=0)
    axes.set(xlabel="place of the target in its predictive distribution", ylabel="rows", xlim=(0, 1))
    axes.set_ylim(0, 1.3 * max(float(counts.max()), expected + margin))
    axes.legend([(band, line)], ["calibrated, with two deviations"], frameon=False, fontsize=8, loc="upper left")
    return figure
