"""One row per matrix, one dot per method, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

# Okabe and Ito's, black for the method that the others are compared with.
COLOURS = ("#000000", "#8A8A8A", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#F0E442", "#0072B2")


def dots(
    axes: Axes, rows: Sequence[str], values: Mapping[str, Sequence[float | None]], *, offset: float = 0.0, **style: Any
) -> None:
    """``values`` by method, one number per row; None (never reached) leaves its dot out. The last method is ours."""
    names = list(values)
    for place, name in enumerate(names):
        known = [(value, row + offset) for row, value in enumerate(values[name]) if value is not None]
        colour = COLOURS[-1] if place == len(names) - 1 else COLOURS[place]
        size = 42 if place == len(names) - 1 else 26
        places, heights = [value for value, _ in known], [height for _, height in known]
        axes.scatter(places, heights, **{"color": colour, "s": size, "zorder": 3, **style})
        # A handle of its own: a method without any dot must still be in the legend.
        axes.scatter([], [], color=colour, s=size, label=name)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
