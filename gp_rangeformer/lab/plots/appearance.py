"""What the figures of a comparison have in common: title, legend, and the line by which a solver is known."""

from __future__ import annotations

import math
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gp_rangeformer.lab.compare.result import Comparison, SolverResult
from gp_rangeformer.lab.plots.style import colour_of, dress

_STYLE: dict[str, dict[str, Any]] = {
    "reference": {"linestyle": (0, (4, 2)), "linewidth": 1.2, "zorder": 6},
    "rangeformer": {"linewidth": 2.2, "zorder": 4},
    "rangeformer-fit": {"linewidth": 2.2, "zorder": 5, "marker": ".", "markersize": 5},
    "cg": {"linewidth": 1.4, "zorder": 3},
    "cg-tight": {"linewidth": 1.4, "zorder": 3},
    "cholesky": {"linewidth": 3.2, "zorder": 2, "alpha": 0.75},
    "exact": {"linewidth": 5.0, "zorder": 1, "alpha": 0.45},
}


def add_title(figure: Figure, comparison: Comparison, title: str, grid: Literal["both", "x"] = "both") -> None:
    """The title, with what was compared, and the dress of all panels; call it when they have their contents."""
    where = f"{comparison.dataset.name}, n = {comparison.n}, {comparison.kernel}, {comparison.dtype}"
    figure.suptitle(f"{title}: {where}", fontsize=11, x=0.01, ha="left")
    for axes in figure.axes:
        dress(axes, grid)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Below the panels, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    # Inches that a label of this size takes, its line included.
    fitting = int(figure.get_figwidth() // (0.6 + 0.07 * max(map(len, labels))))
    rows = math.ceil(len(labels) / max(1, fitting))
    columns = math.ceil(len(labels) / rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def line(comparison: Comparison, result: SolverResult) -> dict[str, Any]:
    """Arguments of ``Axes.plot``. Curves that coincide stay visible: wide and pale below, thin above."""
    style = _STYLE.get(result.name, {"linewidth": 1.3, "zorder": 3})
    return {**style, "color": colour(comparison, result), "label": display_name(result), "solid_capstyle": "round"}


def colour(comparison: Comparison, result: SolverResult) -> str:
    """The same in every figure of the comparison."""
    return colour_of(result.name, [other.name for other in comparison.results])


def display_name(result: SolverResult) -> str:
    """As legends and axes have it: the settings of a solver set apart, the reference with its dtype."""
    name = result.name.replace("+", ", ").replace(":", ": ")
    return f"{name} ({result.dtype})" if result.is_reference else name
