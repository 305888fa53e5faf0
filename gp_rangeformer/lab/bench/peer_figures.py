"""The figures of the benchmark: seconds, seconds over the floor's, and peak memory, against n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from gp_rangeformer.lab.bench.floors import FLOOR, HOST_FLOOR
from gp_rangeformer.lab.bench.growth import exponent
from gp_rangeformer.lab.bench.peer_run import Plan
from gp_rangeformer.lab.bench.peer_tables import matrix_mib, relative_seconds, series
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.plots.style import SOLVER_COLOURS, colour_of, dress, new_figure, save_figure

_COLOURS = {**SOLVER_COLOURS, "gpflash": "#7F5539", "keops": "#56B4E9", FLOOR: "#222222", HOST_FLOOR: "#8A8A8A"}
_GAP = 0.052  # between labels, as a share of the axes' height

_Lines = Mapping[str, Mapping[int, float]]


def write_peer_figures(sizes: Sequence[Size], plan: Plan, folder: Path) -> list[Path]:
    """The three figures as 150 dpi PNG named after the data set. Returns the files written; O(1) memory a figure."""
    written = []
    for name, draw in FIGURES.items():
        path = folder / f"{plan.dataset}-bench-{name}.png"
        save_figure(draw(sizes, plan), path)
        written.append(path)
    return written


def seconds(sizes: Sequence[Size], plan: Plan) -> Figure:
    """Seconds per step against n, with fitted exponents."""
    lines = {name: series(sizes, name, Row.seconds) for name in _names(sizes)}
    return _figure(sizes, plan, lines, "Seconds per step (value and gradient)", "seconds", exponents=True)


def memory(sizes: Sequence[Size], plan: Plan) -> Figure:
    """Peak memory against n, beside one K."""
    lines = {name: series(sizes, name, lambda row: row.peak) for name in _names(sizes)}
    one = {size.n: matrix_mib(size.n, plan.dtype) for size in sizes}
    return _figure(sizes, plan, {**lines, "one K": one}, "Peak memory of a step", "MiB", exponents=False)


def over_floor(sizes: Sequence[Size], plan: Plan) -> Figure:
    """Seconds over the floor's within a step, against n."""
    relative = {size.n: relative_seconds(size, FLOOR) for size in sizes}
    lines = {name: {n: found[name] for n, found in relative.items() if name in found} for name in _names(sizes)}
    return _figure(sizes, plan, lines, "Seconds per step over the floor's", "step / floor", exponents=False)


FIGURES: dict[str, Callable[[Sequence[Size], Plan], Figure]] = {
    "seconds": seconds,
    "memory": memory,
    "floor": over_floor,
}


def _names(sizes: Sequence[Size]) -> list[str]:
    return list(dict.fromkeys(row.name for size in sizes for row in size.rows))


def _figure(sizes: Sequence[Size], plan: Plan, lines: _Lines, title: str, unit: str, *, exponents: bool) -> Figure:
    figure = new_figure(7.6, 4.8)
    axes = figure.subplots()
    drawn = {name: values for name, values in lines.items() if values}
    for name, values in drawn.items():
        axes.plot(list(values), list(values.values()), **_style(name, list(drawn)))
    axes.set(xscale="log", yscale="log", xlabel="n", ylabel=unit)
    axes.xaxis.set_major_locator(FixedLocator([size.n for size in sizes]))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    dress(axes)
    _label_ends(axes, drawn, exponents)
    what = f"{plan.dataset}, {plan.dtype}, {sizes[0].machine.split(', torch')[0]}, torch threads: {sizes[0].threads}"
    figure.suptitle(f"{title}: {what}", fontsize=9.5, x=0.01, ha="left")
    return figure


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    if name == "one K":
        return {"color": "#222222", "linewidth": 1.0, "linestyle": (0, (1, 1.5)), "zorder": 1}
    style: dict[str, Any] = {
        "color": colour_of(name, names, _COLOURS),
        "marker": "o",
        "markersize": 3.5,
        "linewidth": 1.5,
    }
    if name in (FLOOR, HOST_FLOOR):
        style |= {"linestyle": (0, (4, 2)), "linewidth": 1.2, "zorder": 2}
    elif name == "rangeformer":
        style |= {"linewidth": 2.4, "zorder": 5}
    return style


def _label_ends(axes: Axes, lines: _Lines, exponents: bool) -> None:
    """Every line's name beside the axes at the height of its end, moved as little as keeps the names apart."""
    low, high = (log(limit) for limit in axes.get_ylim())
    last = max(n for values in lines.values() for n in values)
    ends = {name: max(values) for name, values in lines.items()}
    heights = [(log(lines[name][end]) - low) / (high - low) for name, end in ends.items()]
    for (name, end), height in zip(ends.items(), spread(heights, _GAP), strict=True):
        power = exponent(lines[name]) if exponents else None
        text = name if power is None else f"{name}  $n^{{{power:.2f}}}$"
        if end < last:
            text += f"  (to {end})"
        colour = _style(name, list(lines))["color"]
        axes.annotate(
            text,
            (end, lines[name][end]),
            xytext=(1.05, height),
            textcoords="axes fraction",
            fontsize=8.5,
            va="center",
            color=colour,
            # Dotted where the contender was left out further on: the leader is no measurement.
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "linestyle": "-" if end == last else ":",
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to ``positions`` in the mean square that keep their order and lie ``gap`` apart.

    Isotonic regression of the positions minus multiples of the gap, by pooling adjacent violators.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    blocks: list[tuple[float, int]] = []  # mean, length
    for rank, index in enumerate(order):
        level, length = positions[index] - rank * gap, 1
        while blocks and blocks[-1][0] > level:
            before, count = blocks.pop()
            level, length = (before * count + level * length) / (count + length), count + length
        blocks.append((level, length))
    levels = [level for level, length in blocks for _ in range(length)]
    found = [0.0] * len(positions)
    for rank, index in enumerate(order):
        found[index] = levels[rank] + rank * gap
    return found
