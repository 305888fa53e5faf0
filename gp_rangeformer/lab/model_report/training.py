"""Figures of the fit: the likelihood over seconds, and how well its end is known."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gp_rangeformer.fit import FitResult, Record
from gp_rangeformer.lab.model_report.drawing import PALE, new_panel
from gp_rangeformer.lab.plots.style import BLUE, GREEN, VERMILION

_ROOM = 0.08  # of the range of values, at either end
_NARROWEST = 1e-6  # nats per row: height of a panel, at least
_WIDTHS = 4  # of the likely interval: half the height of the magnified panel


def whole_fit(fit: FitResult) -> Figure:
    """Every evaluation: on all rows, on subsets, and those that were rejected. The certain interval stands at the end,
    as far as it is in the panel, which it may double."""
    figure, axes = new_panel()
    accepted = [record.value for record in fit.history if record.accepted]
    low, high = min(accepted), max(accepted)
    span = max(high - low, _NARROWEST)
    if fit.certain is not None:
        low = min(low, max(fit.certain.lower, low - span))
        high = max(high, min(fit.certain.upper, high + span))
    low, high = low - _ROOM * span, high + _ROOM * span
    axes.set_ylim(low, high)
    levels: dict[int, list[Record]] = {}
    for record in fit.history:
        if record.accepted:
            levels.setdefault(record.points, []).append(record)
    *subsets, all_rows = sorted(levels)
    label: str | None = "on a subset of the rows"
    for points in subsets:
        x, y = [r.seconds for r in levels[points]], [r.value for r in levels[points]]
        axes.plot(x, y, "o-", color=PALE, mfc="white", markersize=4, linewidth=1, label=label)
        label = None
    _with_intervals(axes, levels[all_rows], "on all rows")
    _rejected(axes, [record for record in fit.history if not record.accepted], low)
    if fit.certain is not None:
        x = levels[all_rows][-1].seconds
        ends = [fit.certain.clip(edge) for edge in (low, high)]
        axes.plot([x, x], ends, color=GREEN, linewidth=5, alpha=0.35, solid_capstyle="butt", label="certain at the end")
    axes.set(xlabel="seconds", ylabel="log p(y)/n [nats per row]")
    axes.legend(frameon=False, fontsize=8)
    return figure


def magnified_end(fit: FitResult) -> Figure:
    """The end at the scale of the likely interval, with the evaluations and the certain bounds that are in view."""
    figure, axes = new_panel()
    half = max(_WIDTHS * fit.error, fit.decrement, _NARROWEST)
    axes.set_ylim(fit.value - half, fit.value + half)
    steps = [r for r in fit.history if r.accepted and r.points == max(record.points for record in fit.history)]
    seen = [r for r in steps if abs(r.value - fit.value) <= half] or steps[-1:]
    _with_intervals(axes, seen, "on all rows, with the likely interval")
    if fit.certain is not None:
        label: str | None = "certain bound"
        for edge in (fit.certain.lower, fit.certain.upper):
            if abs(edge - fit.value) <= half:
                axes.axhline(edge, color=GREEN, linewidth=1.4, linestyle=(0, (4, 2)), label=label)
                label = None
    axes.set(xlabel="seconds", ylabel="log p(y)/n [nats per row]")
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    axes.margins(x=0.15)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _with_intervals(axes: Axes, records: Sequence[Record], label: str) -> None:
    x, y, error = zip(*((r.seconds, r.value, r.error) for r in records), strict=True)
    axes.errorbar(x, y, error, color=BLUE, fmt="o-", markersize=4, linewidth=1.6, capsize=3, label=label, zorder=4)


def _rejected(axes: Axes, records: Sequence[Record], floor: float) -> None:
    """Those below the panel stand on its floor."""
    if records:
        x, y = [r.seconds for r in records], [max(r.value, floor) for r in records]
        axes.plot(x, y, "x", color=VERMILION, markersize=6, label="rejected steps", clip_on=False)
