"""Steps at the end of a fit: the table of all sets, and its sentence."""

from __future__ import annotations

from collections.abc import Callable

from gp_rangeformer.lab.bench.peer_tables import relative_seconds
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.bench.replay import WARM_UP
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.results import Results

_PLUGIN, _WITHOUT, _CHOLESKY, _CG, _EXACT = "rangeformer", "rangeformer:neighbours=0", "cholesky", "cg", "exact"
_HEADERS = (
    "set, n",
    "s/step",
    "without neighbours",
    "exact path",
    "GPyTorch Cholesky",
    "GPyTorch CG",
    "iterations, first step",
    "iterations",
    "gradient error, without, CG",
    "value error, without, CG",
    "exact path had to answer, without",
)
_NONE = "-"


def optimum_table(results: Results) -> str:
    """A row for every set and size."""
    rows = [_row(name, size) for name, run in results.optima.items() for size in run.sizes]
    run = next(iter(results.optima.values()))
    notes = (
        f"kernel {run.sizes[0].kernel} with a length-scale per dimension, {run.plan.dtype}, seed {run.plan.seed}, "
        f"{run.plan.steps} Adam steps of rate 0.01 from the hyperparameters of a converged fit; "
        f"{results.machine(f'optimum-{next(iter(results.optima))}')}",
        f"s/step: value and gradient, median after step {WARM_UP}; the next four columns: times as long, within a "
        "step, contenders in turn",
        "errors: means, relative and in nats per point, against exact float64 at the same hyperparameters",
    )
    return Grid("", _HEADERS, tuple(rows), notes).to_markdown(titled=False)


def optimum_sentence(results: Results) -> str:
    """How much longer GPyTorch's Cholesky and the plug-in without neighbours take, by size."""
    sizes = [size for run in results.optima.values() for size in run.sizes]
    found = []
    for n in sorted({size.n for size in sizes}):
        over = [relative_seconds(size, _PLUGIN) for size in sizes if size.n == n]
        parts = []
        for name, title in ((_CHOLESKY, "GPyTorch's Cholesky"), (_WITHOUT, "the plug-in without neighbours")):
            ratios = [ratios[name] for ratios in over if name in ratios]
            if ratios:
                parts.append(f"{title} {_range(ratios)}")
        found.append(f"at n = {n:,} {', '.join(parts)}")
    return f"So many times as long as a step with the flag: {'; '.join(found)}."


def _row(name: str, size: Size) -> tuple[str, ...]:
    over = relative_seconds(size, _PLUGIN)
    rows = {row.name: row for row in size.rows}
    own = rows[_PLUGIN]
    return (
        f"{name}, {size.n:,}",
        f"{own.outcome.summary()['seconds']:.3f}" if own.complete else _NONE,
        *(f"{over[other]:.1f}x" if other in over else _NONE for other in (_WITHOUT, _EXACT, _CHOLESKY, _CG)),
        str(own.outcome.iterations[0]) if own.complete else _NONE,
        f"{own.outcome.summary()['iterations']:.1f}" if own.complete else _NONE,
        _errors(rows, "gradient_error", lambda value: f"{100 * value:.1f} %"),
        _errors(rows, "value_error", "{:.4f}".format),
        ", ".join(str(rows[other].outcome.fallbacks) for other in (_PLUGIN, _WITHOUT)),
    )


def _errors(rows: dict[str, Row], what: str, form: Callable[[float], str]) -> str:
    outcomes = [rows[name].outcome for name in (_PLUGIN, _WITHOUT, _CG)]
    return ", ".join(form(outcome.summary()[what]) if outcome.value_error else _NONE for outcome in outcomes)


def _range(ratios: list[float]) -> str:
    low, high = min(ratios), max(ratios)
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
