"""Figures of what the model misses: every row against its prediction from all others."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from gp_rangeformer.lab.model_report.drawing import GREY, new_panel, shortened
from gp_rangeformer.lab.plots.style import BLUE
from gp_rangeformer.predict.leave_one_out import LeaveOneOut

_NORMAL_95 = 1.959964


def observed_figure(scores: LeaveOneOut, target: str) -> Figure:
    """Targets against their predictions."""
    figure, axes = new_panel()
    mean, targets = scores.mean.cpu().numpy(), scores.targets.cpu().numpy()
    low, high = min(mean.min(), targets.min()), max(mean.max(), targets.max())
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.scatter(mean, targets, **_cloud(len(mean)))
    axes.set_xlabel(f"{shortened(target)}, predicted", parse_math=False)
    axes.set_ylabel(f"{shortened(target)}, observed", parse_math=False)
    return figure


def residual_figure(scores: LeaveOneOut, target: str) -> Figure:
    """Standardised residuals against predictions."""
    figure, axes = new_panel()
    mean = scores.mean.cpu().numpy()
    standard = ((scores.targets - scores.mean) / scores.variance.sqrt()).cpu().numpy()
    axes.axhline(0, color=GREY, linewidth=1)
    for edge in (-_NORMAL_95, _NORMAL_95):
        axes.axhline(edge, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.scatter(mean, standard, **_cloud(len(mean)))
    axes.set_xlabel(f"{shortened(target)}, predicted", parse_math=False)
    axes.set_ylabel("residual [predictive deviations]")
    return figure


def _cloud(n: int) -> dict[str, Any]:
    """Of n points: pixels, as thousands of them would make a page of megabytes, and paler the more there are."""
    dense = n > 2000
    return {
        "s": 5 if dense else 10,
        "alpha": 0.3 if dense else 0.6,
        "color": BLUE,
        "linewidths": 0,
        "rasterized": True,
        "zorder": 3,
    }
