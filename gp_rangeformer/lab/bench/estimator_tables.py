"""The two estimators as a table."""

from __future__ import annotations

from collections.abc import Sequence

from gp_rangeformer.lab.bench.estimator_cell import Contender, EstimatorCell
from gp_rangeformer.lab.bench.fit_tables import spoken
from gp_rangeformer.lab.grid import Grid

_HEADERS = (
    "set, n",
    "estimator",
    "s an evaluation",
    "s a fit",
    "faster",
    "evaluations",
    "log p(y)/n there",
    "s a prediction",
    "RMSE",
)


def grid(cells: Sequence[EstimatorCell], note: str) -> Grid:
    """Two rows for every cell."""
    rows = [
        row
        for cell in cells
        for row in (
            _row(cell, "GaussianProcessRegressor", cell.theirs, "1"),
            _row(cell, "RangeFormerRegressor", cell.ours, times(cell)),
        )
    ]
    t = " or ".join(f"{count:,}" for count in sorted({cell.t for cell in cells}))
    off = max((max(cell.mean_off, cell.deviation_off) for cell in cells), default=0.0)
    notes = (
        "an evaluation: log_marginal_likelihood with its gradient at the start; faster: how many times the fit; >: "
        "scikit-learn's was stopped, and its values are those of then",
        f"there: exact; a prediction: means and standard deviations of {t} points, the first after the fit; RMSE: "
        "standardised targets",
        f"ours at the same theta differs from scikit-learn's by at most {off:.0e} in a mean or deviation",
        *((note,) if note else ()),
    )
    return Grid("", _HEADERS, tuple(rows), notes, keys=2)


def times(cell: EstimatorCell) -> str:
    """How many times faster, in two digits."""
    sign = "" if cell.theirs.ended else "> "
    return f"{sign}{cell.faster:.0f}" if cell.faster >= 10 else f"{sign}{cell.faster:.1f}"


def _row(cell: EstimatorCell, name: str, found: Contender, faster: str) -> tuple[str, ...]:
    return (
        f"{cell.dataset}, {cell.n:,}",
        name,
        f"{found.evaluation:.3f}",
        spoken(found.fit),
        faster,
        str(found.evaluations),
        f"{found.value:.4f}",
        f"{found.prediction:.3f}",
        f"{found.rmse:.4f}",
    )
