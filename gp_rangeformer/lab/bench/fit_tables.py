"""Fits against seconds, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from gp_rangeformer.lab.bench.fits import FAILED, GAPS, OUT_OF_TIME, FitCell, FitRun
from gp_rangeformer.lab.grid import Grid

_HEADERS = (
    "set, n", "way to train", *(f"s to {gap:g}" for gap in GAPS), "s in all", "evaluations", "ends below",
    "why it ended",
)  # fmt: skip
_STEPS, _FOUND, _SPENT = " steps", "CONVERGENCE", "STOP: TOTAL NO"  # of Adam; of scipy's L-BFGS


def grid(cells: Sequence[FitCell], note: str, patience: float) -> Grid:
    """A row for every contender of every cell.

    :param patience: seconds after which each was stopped.
    """
    rows = [_row(cell, run, patience) for cell in cells for run in cell.runs]
    notes = (
        "s to: seconds until an evaluation was within so many nats per point of the highest likelihood that anybody "
        "found (a float64 fit to 1e-6 included); -: never",
        "s in all: of three runs where one takes less than 10 s the median, and their range; evaluations: on all "
        "points; the parameters that the model is left with count as one more",
        "ends below: how far the parameters that the model is left with are below it; exact float64 values",
        *((note,) if note else ()),
    )
    return Grid("", _HEADERS, tuple(rows), notes, keys=2)


def _row(cell: FitCell, run: FitRun, patience: float) -> tuple[str, ...]:
    reached = [spoken(run.seconds_to(gap, cell.optimum)) for gap in GAPS]
    name = f"{run.name}, {run.how}" if run.how else run.name
    total = spoken(run.total)
    if run.totals:
        total += f" ({spoken(min(run.totals))}-{spoken(max(run.totals))})"
    below = f"{cell.optimum - run.end:.4f}"
    return f"{cell.dataset}, {cell.n:,}", name, *reached, total, str(run.evaluations), below, ended(run, patience)


def ended(run: FitRun, patience: float) -> str:
    """Why the run ended, in words."""
    if run.reason == OUT_OF_TIME:
        return f"stopped after {patience:g} s"
    if run.reason.startswith(FAILED):
        return f"crashed ({run.reason.removeprefix(FAILED)})"
    if run.reason.startswith(_FOUND):
        _, _, widened = run.reason.partition(", in float64")
        return "converged" + (f", in float64{widened}" if widened else "")
    return f"{run.evaluations - 1} evaluations" if run.reason.startswith(_SPENT) else run.reason


def missed(run: FitRun, patience: float) -> str:
    """Why the run did not come near enough, in words."""
    if run.reason == OUT_OF_TIME:
        return f"not within {patience:g} s"
    if run.reason.startswith(FAILED):
        return "crashed"
    if run.reason.endswith(_STEPS):
        return f"not within {run.reason}"
    if run.reason.startswith(_SPENT):
        return f"not within {run.evaluations - 1} evaluations"
    return "ended short of it"


def spoken(seconds: float | None) -> str:
    """Three digits."""
    return "-" if seconds is None else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"
