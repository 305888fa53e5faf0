"""How every figure of the package looks: the palette, the resolution, and the dress of panels.

Colours are Okabe and Ito's, told apart by colour-blind readers, and a solver keeps its colour in every figure.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gp_rangeformer.atomic import write_bytes

SOLVER_COLOURS = {
    "reference": "#000000",
    "exact": "#009E73",
    "cholesky": "#E69F00",
    "cg": "#D55E00",
    "cg-tight": "#CC79A7",
    "rangeformer": "#0072B2",
    "rangeformer-direct": "#6A3D9A",
}
DPI = 150
# For names without a colour of their own, in their order.
_FURTHER_COLOURS = ("#56B4E9", "#8C6BB1", "#7F5539", "#8A8A8A")


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
    axes.grid(visible=True, axis=grid, color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
