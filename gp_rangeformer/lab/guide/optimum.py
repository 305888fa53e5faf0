"""Steps at the end of a fit: the table of all sets, and its sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.bench.replay import WARM_UP
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.results import Results
from gp_rangeformer.lab.guide.steadiness import bounds, disturbed, spoken, undisturbed

_PLUGIN, _WITHOUT, _CHOLESKY, _CG, _EXACT = "rangeformer", "rangeformer:neighbours=0", "cholesky", "cg", "exact"
_OTHERS = {
    _WITHOUT: "without neighbours",
    _EXACT: "exact path",
    _CHOLESKY: "GPyTorch Cholesky",
    _CG: "GPyTorch CG",
    "gpflash": "gpflash (float64)",
}
_FURTHER = (
    "iterations, first step",
    "iterations",
    "gradient error, without, CG",
    "value error, without, CG",
    "exact path had to answer, without",
)
_NONE = "-"


def optimum_table(results: Results) -> str:
    """A row for every set and size, a column for every contender that any of them has."""
    sizes = [(name, size) for name, run in results.optima.items() for size in run.sizes]
    others = [other for other in _OTHERS if any(size.row(other) for _, size in sizes)]
    rows = [_row(name, size, others) for name, size in sizes]
    run = next(iter(results.optima.values()))
    notes = (
        f"kernel {run.sizes[0].kernel} with a length-scale per dimension, {run.plan.dtype}, seed {run.plan.seed}, "
        f"{run.plan.steps} Adam steps of rate 0.01 from the hyperparameters of a converged fit; "
        f"{results.machine(f'optimum-{next(iter(results.optima))}')}",
        f"s/step: value and gradient, median after step {WARM_UP}; the next {len(others)} columns: times as long, "
        "within a step, contenders in turn; the middle half of the steps where its ends are more than a factor 1.5 "
        "apart; \\*: other work was on the machine",
        "errors: means, relative and in nats per point, against exact float64 at the same hyperparameters",
        *_left_out_notes(sizes),
    )
    headers = ("set, n", "s/step", *(_OTHERS[other] for other in others), *_FURTHER)
    return Grid("", headers, tuple(rows), notes).to_markdown(titled=False)


def optimum_sentence(results: Results) -> str:
    """How much longer GPyTorch's Cholesky, gpflash and the plug-in without neighbours take, by size."""
    sizes = [size for run in results.optima.values() for size in run.sizes]
    titles = {_CHOLESKY: "GPyTorch's Cholesky", "gpflash": "gpflash", _WITHOUT: "the plug-in without neighbours"}
    found = []
    for n in sorted({size.n for size in sizes}):
        of_this = [size for size in sizes if size.n == n]
        parts = [f"{title} {said}" for name, title in titles.items() if (said := _range(of_this, name))]
        if parts:
            found.append(f"at n = {n:,} {', '.join(parts)}")
    return f"So many times as long as a step with the flag: {'; '.join(found)}."


def _row(name: str, size: Size, others: Sequence[str]) -> tuple[str, ...]:
    rows = {row.name: row for row in size.rows}
    own = rows[_PLUGIN]
    mark = "*" if disturbed(size, _PLUGIN) else ""
    return (
        f"{name}, {size.n:,}",
        f"{own.outcome.summary()['seconds']:.3f}{mark}" if own.complete else _NONE,
        *(_ratio(size, other) for other in others),
        str(own.outcome.iterations[0]) if own.complete else _NONE,
        f"{own.outcome.summary()['iterations']:.1f}" if own.complete else _NONE,
        _errors(rows, "gradient_error", lambda value: f"{100 * value:.1f} %"),
        _errors(rows, "value_error", "{:.4f}".format),
        ", ".join(str(rows[other].outcome.fallbacks) for other in (_PLUGIN, _WITHOUT)),
    )


def _left_out_notes(sizes: Sequence[tuple[str, Size]]) -> list[str]:
    """Why cells are empty."""
    notes = []
    for name, size in sizes:
        missing = [
            f"{_OTHERS.get(row.name, row.name)}: {row.outcome.left_out}" for row in size.rows if not row.complete
        ]
        if not any(row.outcome.gradient_error for row in size.rows):
            missing.append("errors were not asked for")
        if missing:
            notes.append(f"-, {name}, {size.n:,}: {'; '.join(missing)}")
    return notes


def _ratio(size: Size, other: str) -> str:
    found = bounds(size, other, _PLUGIN)
    if found is None:
        return _NONE
    return f"{spoken(found, '-')}x{'' if undisturbed(size, other, _PLUGIN) else '*'}"


def _errors(rows: dict[str, Row], what: str, form: Callable[[float], str]) -> str:
    outcomes = [rows[name].outcome for name in (_PLUGIN, _WITHOUT, _CG)]
    return ", ".join(form(outcome.summary()[what]) if outcome.value_error else _NONE for outcome in outcomes)


def _range(sizes: Sequence[Size], name: str) -> str:
    """From the lowest to the highest of the sets'; nothing where it was not measured."""
    found = [bounds(size, name, _PLUGIN) for size in sizes if undisturbed(size, name, _PLUGIN)]
    ends = [end for pair in found if pair is not None for end in pair]
    return spoken((min(ends), max(ends))) if ends else ""
