"""What follows a fit: the guide's tables, and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from gp_rangeformer.lab.bench import prediction_tables
from gp_rangeformer.lab.bench.prediction_calls import Calls
from gp_rangeformer.lab.bench.prediction_contenders import (
    CERTIFIED,
    CHOLESKY,
    FAST,
    FLAG,
    GPFLASH,
    WHOLE,
)
from gp_rangeformer.lab.bench.prediction_left_out import LeftOut
from gp_rangeformer.lab.bench.prediction_paths import BOTORCH, OURS, Paths
from gp_rangeformer.lab.bench.predictions import Cell, Plan
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.results import Results

Part = TypeVar("Part")

# LOVE is in the table only: its conjugate gradients do not converge at these optima.
_HOST = {
    CHOLESKY: "GPyTorch's Cholesky{block}",
    WHOLE: "GPyTorch's Cholesky of all points at once",
    FAST: "GPyTorch's Cholesky{block} with fast_pred_var",
}


def predictions_table(results: Results) -> str:
    """Means and variances, by everybody."""
    return _markdown(results, prediction_tables.predictions_grid, results.predictions.cells)


def small_table(results: Results) -> str:
    """Few training points, many test points."""
    return _markdown(results, prediction_tables.small_grid, results.predictions.small)


def paths_table(results: Results) -> str:
    """Functions from posteriors."""
    return _markdown(results, prediction_tables.paths_grid, results.predictions.cells)


def left_out_table(results: Results) -> str:
    """Leave-one-out scores."""
    return _markdown(results, prediction_tables.left_out_grid, results.predictions.cells)


def further_table(results: Results) -> str:
    """Further observations."""
    return _markdown(results, prediction_tables.further_grid, results.predictions.further)


def predictions_sentence(results: Results) -> str:
    """What the largest models take, and others in times of that."""
    run = results.predictions
    t, n = run.plan.t, max(cell.n for cell in run.cells)
    cells = [cell for cell in run.cells if cell.n == n]
    own = _all(cells, FLAG.name, t)
    first, second = ([_known(getattr(calls, name)) for calls in own] for name in ("first", "second"))
    text = (
        f"At n = {n:,} means and variances of {t:,} points take {_seconds(first)} s the first time, {_seconds(second)} "
    )
    text += f"for as many others{_off(own, 'variances off')}"
    block = "" if run.plan.block is None else f" in blocks of {run.plan.block:,}"
    host = {name: title.format(block=block) for name, title in _HOST.items()}
    titles = {CERTIFIED: "certified variances", **_fastest(host, cells, t), GPFLASH: "gpflash (float64)"}
    for name, title in titles.items():
        others = _all(cells, name, t)
        if any(calls.first for calls in others):
            text += f"; {title} {_slower(others, own)}{_off(others)}"
        elif any(calls.failure for calls in others):
            text += f"; {title} has no answer"
    return text + "."


def _fastest(titles: dict[str, str], cells: Sequence[Cell], t: int) -> dict[str, str]:
    """Those that no other one beats both the first time and after."""
    took = {}
    for name in titles:
        calls = _all(cells, name, t)
        if all(each.first and each.second for each in calls):
            took[name] = sum(each.first or 0 for each in calls), sum(each.second or 0 for each in calls)
    return {
        name: titles[name]
        for name, (first, second) in took.items()
        if not any(other[0] < first and other[1] < second for other in took.values())
    }


def _slower(others: Sequence[Calls], own: Sequence[Calls]) -> str:
    """How many times as long, told twice where later calls differ from first ones."""
    pairs = list(zip(others, own, strict=True))
    first = _range([its.first / mine.first for its, mine in pairs if its.first and mine.first], "{:.1f}")
    second = _range([its.second / mine.second for its, mine in pairs if its.second and mine.second], "{:.1f}")
    return f"{first} times as long" if first == second else f"{first}, then {second} times as long"


def paths_sentence(results: Results) -> str:
    """Drawing and evaluating, against BoTorch's for each path, and leave-one-out in training steps."""
    run = results.predictions
    n = max(cell.n for cell in run.cells)
    cells = [cell for cell in run.cells if cell.n == n]
    text = f"At n = {n:,},"
    ours, theirs = ([_paths(cell, name) for cell in cells] for name in (OURS, BOTORCH))
    drawn = [paths for paths in ours if paths is not None and paths.draw is not None]
    if drawn:
        took = [_known(paths.draw) for paths in drawn], [_known(paths.evaluate) for paths in drawn]
        text += (
            f" {drawn[0].count} functions take {_seconds(took[0])} s to draw and {_seconds(took[1])} to evaluate at "
        )
        text += f"{drawn[0].t:,} points"
        pairs = [(_each(its), _each(mine)) for its, mine in zip(theirs, ours, strict=True)]
        ratios = [its / mine for its, mine in pairs if its is not None and mine is not None]
        if ratios:
            text += f"; each of BoTorch's {_range(ratios, '{:.1f}')} times as long"
        text += ";"
    scores = [cell.left_out for cell in cells if cell.left_out is not None]
    text += f" leave-one-out scores take {_steps(scores)} training steps."
    return text


def _markdown(results: Results, grid: Callable[[Sequence[Part], Plan, str], Grid], parts: Sequence[Part]) -> str:
    """Without a title: the page has one."""
    return grid(parts, results.predictions.plan, results.machine("predictions")).to_markdown(titled=False)


def _calls(cell: Cell, name: str, t: int) -> Calls:
    row = cell.row(name)
    return Calls(t) if row is None else row.at(t)


def _all(cells: Sequence[Cell], name: str, t: int) -> list[Calls]:
    return [_calls(cell, name, t) for cell in cells]


def _paths(cell: Cell, name: str) -> Paths | None:
    return next((paths for paths in cell.paths if paths.name == name), None)


def _each(paths: Paths | None) -> float | None:
    """Seconds of one."""
    if paths is None or paths.draw is None or paths.evaluate is None:
        return None
    return (paths.draw + paths.evaluate) / paths.count


def _steps(scores: Sequence[LeftOut]) -> str:
    found = [score.seconds / score.step for score in scores if score.seconds and score.step]
    return _range(found, "{:.1f}") if found else "an unknown number of"


def _off(calls: Sequence[Calls], words: str = "off") -> str:
    found = [100 * each.errors.variance for each in calls if each.errors is not None]
    if not found:
        return ""
    texts = (f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in (min(found), max(found)))
    doubt = "" if all(map(prediction_tables.converged, calls)) else ", not converged"
    return f" ({words} by {' to '.join(dict.fromkeys(texts))} %{doubt})"


def _known(value: float | None) -> float:
    assert value is not None, "the flag's own predictions failed"
    return value


def _seconds(values: Sequence[float]) -> str:
    texts = [prediction_tables.seconds(value) for value in (min(values), max(values))]
    return " to ".join(dict.fromkeys(texts))


def _range(values: Sequence[float], form: str) -> str:
    return " to ".join(dict.fromkeys(form.format(value) for value in (min(values), max(values))))
