"""Fits of many kinds of data as tables: every one of them, and how many ended higher, equal and lower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from gp_rangeformer.lab.bench.fit_tables import spoken
from gp_rangeformer.lab.bench.robust import GAP, RobustCell
from gp_rangeformer.lab.grid import Grid

_CELL_HEADERS = (
    "set, n", "start", "dtype", "BoTorch", "fit_mll", "higher by", "onward", "evaluations", "s", "raised or warned",
)  # fmt: skip
_SUMMARY_HEADERS = (
    "fits", "how many", "higher", "equal", "lower", "highest", "lowest", "raised", "warned", "evaluations",
    "times as fast",
)  # fmt: skip


def cells_grid(cells: Sequence[RobustCell], note: str = "") -> Grid:
    """A row for every case."""
    notes = (
        "start: the model's own, or the seed of a random one; BoTorch, fit_mll: exact log p(y)/n where each ended, "
        "priors included; evaluations, s: of BoTorch, of fit_mll",
        f"onward, where they are more than {GAP:g} apart: what BoTorch's own fit gains that goes on from the lower one",
        *((note,) if note else ()),
    )
    return Grid("", _CELL_HEADERS, tuple(map(_row, cells)), notes, keys=2)


def one_line(cell: RobustCell) -> str:
    """For a console, while others are still to come."""
    return ", ".join(f"{header} {text}" for header, text in zip(_CELL_HEADERS[1:], _row(cell)[1:], strict=True) if text)


def summary_grid(cells: Sequence[RobustCell], note: str = "") -> Grid:
    """From the models' own starts, from random ones, and all."""
    parts = {
        "own start": [cell for cell in cells if not cell.start],
        "random start": [cell for cell in cells if cell.start],
        "all": cells,
    }
    notes = (
        f"higher, lower: fits of fit_mll that end more than {GAP:g} nats per point above or below BoTorch's; highest, "
        "lowest: by how much at most",
        "raised, warned: fits of BoTorch, of fit_mll; evaluations: medians of both; times as fast: median of the "
        "ratios of their seconds",
        *((note,) if note else ()),
    )
    rows = tuple(_summary(name, part) for name, part in parts.items() if part)
    return Grid("", _SUMMARY_HEADERS, rows, notes)


def differing(cells: Sequence[RobustCell]) -> tuple[list[RobustCell], list[RobustCell]]:
    """Where fit_mll ends higher, and where it ends lower, by more than the gap; the widest first."""
    known = [(cell.above, cell) for cell in cells if cell.above is not None]
    known.sort(key=lambda pair: pair[0])
    higher = [cell for above, cell in known[::-1] if above > GAP]
    return higher, [cell for above, cell in known if above < -GAP]


def _row(cell: RobustCell) -> tuple[str, ...]:
    ends = {"BoTorch": cell.theirs, "fit_mll": cell.ours}
    said = [
        f"{name}: {text}"
        for name, end in ends.items()
        for text in ([] if end.raised is None else [end.raised.partition(":")[0]]) + list(end.warned)
    ]
    values = [end.value for end in ends.values() if end.value is not None]
    return (
        f"{cell.dataset}, {cell.n:,}",
        str(cell.start) if cell.start else "own",
        cell.dtype,
        *("-" if end.value is None else f"{end.value:.4f}" for end in ends.values()),
        "-" if cell.above is None else f"{cell.above:+.4f}",
        "" if cell.onward is None else f"{cell.onward - min(values):.4f}",
        _pair(str(end.evaluations) for end in ends.values()),
        _pair(spoken(end.seconds) for end in ends.values()),
        "; ".join(said),
    )


def _summary(name: str, cells: Sequence[RobustCell]) -> tuple[str, ...]:
    higher, lower = differing(cells)
    known = [cell.above for cell in cells if cell.above is not None]
    ends = [[cell.theirs for cell in cells], [cell.ours for cell in cells]]
    return (
        name,
        str(len(cells)),
        str(len(higher)),
        str(len(known) - len(higher) - len(lower)),
        str(len(lower)),
        f"{max(known):+.4f}" if known else "-",
        f"{min(known):+.4f}" if known else "-",
        _pair(str(sum(end.raised is not None for end in side)) for side in ends),
        _pair(str(sum(bool(end.warned) for end in side)) for side in ends),
        _pair(f"{median(end.evaluations for end in side):.0f}" for side in ends),
        f"{median(cell.theirs.seconds / cell.ours.seconds for cell in cells):.1f}",
    )


def _pair(texts: Iterable[str]) -> str:
    return ", ".join(texts)
