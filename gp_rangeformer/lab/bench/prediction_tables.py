"""Predictions as tables: seconds, memory and errors of everybody; the small model; paths; leave-one-out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gp_rangeformer.lab.bench.prediction_calls import Calls, Row
from gp_rangeformer.lab.bench.prediction_contenders import FLAG
from gp_rangeformer.lab.bench.prediction_exact import Errors
from gp_rangeformer.lab.bench.prediction_further import ROUNDS, Further
from gp_rangeformer.lab.bench.predictions import AUDITED, Cell, Plan
from gp_rangeformer.lab.grid import Grid

_NONE = "-"
_ERRORS = ("mean\noff by", "variance\noff by", "variance\nat most")


def predictions_grid(cells: Sequence[Cell], plan: Plan, where: str) -> Grid:
    """A row for every contender of every cell.

    :param where: what it was measured on.
    """
    headers = ["set, n", "by"]
    for t in plan.sizes:
        headers += [f"s for {t:,},\n{which}" for which in ("first", "then")]
    headers += ["peak MiB", *_ERRORS, "says"]
    rows = []
    for cell in cells:
        for row in cell.rows:
            texts = [f"{cell.dataset}, {cell.n:,}", row.name]
            for t in plan.sizes:
                calls, own = row.at(t), _own(cell, t)
                texts += [_spent(calls.first, own.first), _spent(calls.second, own.second)]
            most = row.at(plan.t)
            rows.append((*texts, _peak(most), *_errors(most), _says(most)))
    notes = [
        f"s for {plan.t:,}: seconds for means and variances of so many points; first: on a fresh model; then: of as "
        "many other points",
        "in brackets: times as long as the flag, in the same run; medians of five runs below 0.5 s, three below 30",
        f"peak MiB, errors: of {plan.t:,} points; peak: of the first call, above what was held before",
        "errors: of means in standard deviations of an observation, the largest; of variances relative to the variance "
        f"of an observation, root mean square and largest; against float64 Cholesky, up to n = {AUDITED:,}",
        "says: the standard error of the variances, or that they are exact, in the report of a call with the flag; or "
        "that conjugate gradients warned that they did not converge",
        _given(plan),
        *_points(cells),
        f"Matern-3/2 with a length-scale per dimension at the optimum, {plan.dtype}, seed {plan.seed}; {where}",
        *_failures(cells),
    ]
    return Grid("Predictions", tuple(headers), tuple(rows), tuple(notes), keys=2)


def small_grid(cells: Sequence[Cell], plan: Plan, where: str) -> Grid:
    """Few training points and many test points, flag and GPyTorch."""
    headers = ("set, n", "by", "points", "s, first", "s, then", "peak MiB", *_ERRORS)
    rows = []
    for cell in cells:
        for row in cell.rows:
            for calls in row.calls:
                own = _own(cell, calls.t)
                spent = _spent(calls.first, own.first), _spent(calls.second, own.second), _peak(calls)
                rows.append((f"{cell.dataset}, {cell.n:,}", row.name, f"{calls.t:,}", *spent, *_errors(calls)))
    notes = (f"as above; {plan.dtype}, seed {plan.seed}; {where}", _given(plan), *_points(cells), *_failures(cells))
    return Grid("A small model", headers, tuple(rows), notes, keys=3)


def paths_grid(cells: Sequence[Cell], plan: Plan, where: str) -> Grid:
    """A row for everybody who draws paths."""
    headers = ("set, n", "by", "paths", "s to draw", "s to evaluate", "peak MiB", "standardised variance")
    rows, notes = [], []
    for cell in cells:
        for paths in cell.paths:
            found = paths.standardised
            standardised = f"{min(found):.2f} to {max(found):.2f}" if found else _NONE
            peak = _NONE if paths.peak is None else f"{paths.peak:,.0f}"
            spent = seconds(paths.draw), seconds(paths.evaluate), peak
            rows.append((f"{cell.dataset}, {cell.n:,}", paths.name, str(paths.count), *spent, standardised))
            if paths.failure is not None:
                notes.append(f"{cell.dataset}, {cell.n:,}, {paths.name}: {paths.failure}")
    first = (
        f"evaluated at {plan.t:,} points; where fewer than {plan.paths} paths were drawn no more fit into memory",
        "standardised variance: mean of (f - m)^2 / v with exact m and v, 1 on average of exact draws; of five draws "
        "with other waves",
        f"{plan.dtype}, seed {plan.seed}; {where}",
    )
    return Grid("Functions from the posterior", headers, tuple(rows), (*first, *notes), keys=2)


def left_out_grid(cells: Sequence[Cell], plan: Plan, where: str) -> Grid:
    """A row for every cell."""
    errors = ("log density\noff by", "log density\nat most", "score\noff by")
    headers = ("set, n", "s", "training\nsteps", "variances\nstated", *errors)
    rows, notes = [], []
    for cell in cells:
        found = cell.left_out
        if found is None:
            continue
        if found.failure is not None:
            notes.append(f"{cell.dataset}, {cell.n:,}: {found.failure}")
        off = [_NONE if value is None else _short(value) for value in (found.error, found.largest, found.score_error)]
        steps = _times(found.seconds, found.step)
        rows.append((f"{cell.dataset}, {cell.n:,}", seconds(found.seconds), steps, _stated(found.stated), *off))
    first = (
        "s: on a fresh model; training steps: that over the seconds of a training step with the flag",
        "errors of log densities: root mean square, largest and of their mean, in nats, against a float64 inverse",
        f"{plan.dtype}, seed {plan.seed}; {where}",
    )
    return Grid("Leave-one-out", headers, tuple(rows), (*first, *notes))


def further_grid(parts: Sequence[Further], plan: Plan, where: str) -> Grid:
    """A row for everybody who takes further observations."""
    headers = ("set, n", "by", "s, first", "s, then", *_ERRORS)
    rows, notes = [], []
    for part in parts:
        own = next((row for row in part.rows if row.name == FLAG.name), part.rows[0])
        for row in part.rows:
            spent = _spent(row.first, own.first), _spent(row.later, own.later)
            rows.append((f"{part.dataset}, {part.n:,}", row.name, *spent, *_off(row.errors)))
            if row.failure is not None:
                notes.append(f"{part.dataset}, {part.n:,}, {row.name}: {row.failure}")
    asked = {(part.more, part.t) for part in parts}
    first = (
        *(
            f"{more} observations at a time: get_fantasy_model, with means and variances of {t} points of what it gives"
            for more, t in sorted(asked)
        ),
        f"first: of a model that has predicted; then: of the fantasy model before, the median of {ROUNDS - 1}; errors: "
        "of the last one, as above",
        f"{plan.dtype}, seed {plan.seed}; {where}",
    )
    return Grid("Further observations", headers, tuple(rows), (*first, *notes), keys=2)


def seconds(value: float | None) -> str:
    """Three digits or fewer."""
    if value is None:
        return _NONE
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _spent(value: float | None, own: float | None) -> str:
    return _NONE if value is None else f"{seconds(value)} ({_times(value, own)})"


def _own(cell: Cell, t: int) -> Calls:
    row = cell.row(FLAG.name)
    return Calls(t) if row is None else row.at(t)


def _times(value: float | None, own: float | None) -> str:
    if value is None or not own:
        return _NONE
    return f"{value / own:.1f}x" if value < 100 * own else f"{value / own:.0f}x"


def _peak(calls: Calls) -> str:
    return _NONE if calls.peak is None else f"{calls.peak:,.0f}"


def _errors(calls: Calls) -> tuple[str, str, str]:
    return _off(calls.errors)


def _off(found: Errors | None) -> tuple[str, str, str]:
    if found is None:
        return _NONE, _NONE, _NONE
    return _percent(found.mean), _percent(found.variance), _percent(found.largest_variance)


def _stated(value: float | None) -> str:
    return _NONE if value is None else f"+- {_percent(value)}" if value else "exact"


def converged(calls: Calls) -> bool:
    """Whether no conjugate gradients warned that they had not."""
    return not any("CG terminated" in text for text in calls.warned)


def _says(calls: Calls) -> str:
    return _stated(calls.stated) if converged(calls) else "not converged"


def _given(plan: Plan) -> str:
    if plan.block is None:
        return "GPyTorch was given all points at once, of which it makes t x t matrices: in blocks it takes less memory"
    return f"GPyTorch is called in blocks of {plan.block:,} points, where it is not said to get all at once"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if value >= 5e-5 else f"{100 * value:.0e} %"


def _short(value: float) -> str:
    return f"{value:.4f}" if value >= 5e-5 else f"{value:.0e}"


def _points(cells: Sequence[Cell]) -> list[str]:
    said: dict[str, list[str]] = {}
    for cell in cells:
        said.setdefault(cell.points, []).append(f"{cell.dataset}, {cell.n:,}")
    return [f"points of {'; '.join(names)}: {points}" for points, names in said.items()]


def _failures(cells: Sequence[Cell]) -> Iterable[str]:
    """Who has no answer and why, each reason once."""
    said: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for row in cell.rows:
            for calls in _failed(row):
                place = f"{cell.dataset}, n = {cell.n:,}, {calls.t:,} points"
                said.setdefault((row.name, calls.failure or ""), []).append(place)
    for (name, reason), places in said.items():
        yield f"{name}: {reason} ({'; '.join(places)})"


def _failed(row: Row) -> list[Calls]:
    return [calls for calls in row.calls if calls.failure is not None]
