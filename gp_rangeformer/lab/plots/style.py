"""How every figure of the package looks: the palette, the resolution, and the dress of panels.

Colours are Okabe and Ito's, told apart by colour-blind readers, and a solver keeps its colour in every figure.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cycler import cycler
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gp_rangeformer.atomic import write_bytes

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
SOLVER_COLOURS = {
    "reference": BLACK,
    "exact": GREEN,
    "cholesky": ORANGE,
    "cg": VERMILION,
    "cg-tight": PURPLE,
    "rangeformer": BLUE,
    "rangeformer-direct": "#6A3D9A",
    "rangeformer-fit": SKY,
    "cholesky-lbfgs": "#7F5539",
}
DPI = 150
_GRID = {"color": "#E6E6E6", "linewidth": 0.7}
# For names without a colour of their own, in their order.
_FURTHER_COLOURS = ("#8C6BB1", "#8A8A8A", "#B8A07E", "#556B2F")
# Of what pyplot draws: lines in these colours, in this order.
_PYPLOT: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK]),
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID["color"],
    "grid.linewidth": _GRID["linewidth"],
    "image.cmap": "cividis",
    "figure.figsize": (8.2, 3.6),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.dpi": 110,
}


def use_in_notebooks() -> None:
    """Let figures that pyplot makes from now on look like the others of the package: a setting of the process."""
    rcParams.update(_PYPLOT)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches. Without pyplot: nothing is kept open, and no display is asked for."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a 150 dpi PNG, atomically. The folder is made if it is not there.

    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    write_bytes(path, content.getvalue())


def colour_of(name: str, names: Sequence[str], own: Mapping[str, str] = SOLVER_COLOURS) -> str:
    """The colour of ``name`` as "#RRGGBB": its own, or one by its place among those of ``names`` that have none.

    :raises ValueError: ``name`` has no colour of its own and is not in ``names``.
    """
    if name in own:
        return own[name]
    others = [other for other in names if other not in own]
    return _FURTHER_COLOURS[others.index(name) % len(_FURTHER_COLOURS)]


def dress(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """The look of all panels: small type, open above and at the right, a pale grid below the data."""
    axes.title.set_fontsize(9.5)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, **_GRID)
    axes.set_axisbelow(True)
