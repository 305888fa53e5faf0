"""Fits against seconds, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from gp_rangeformer.lab.bench.fits import GAPS, FitCell, FitRun
from gp_rangeformer.lab.grid import Grid

_HEADERS = ("set, n", "way to train", *(f"s to {gap:g}" for gap in GAPS), "s in all", "evaluations", "ends below")


def grid(cells: Sequence[FitCell], note: str) -> Grid:
    """A row for every contender of every cell."""
    rows = [_row(cell, run) for cell in cells for run in cell.runs]
    notes = (
        "s to: seconds until an evaluation was within so many nats per point of the highest likelihood that anybody "
        "found (a float64 fit to 1e-6 included); -: never",
        "evaluations: on all points; the parameters that the model is left with count as one more",
        "ends below: how far the parameters that the model is left with are below it; exact float64 values",
        *((note,) if note else ()),
    )
    return Grid("", _HEADERS, tuple(rows), notes, keys=2)


def _row(cell: FitCell, run: FitRun) -> tuple[str, ...]:
    reached = [spoken(run.seconds_to(gap, cell.optimum)) for gap in GAPS]
    name = f"{cell.dataset}, {cell.n:,}"
    return (name, run.name, *reached, spoken(run.total), str(run.evaluations), f"{cell.optimum - run.end:.4f}")


def spoken(seconds: float | None) -> str:
    """Three digits."""
    return "-" if seconds is None else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"
