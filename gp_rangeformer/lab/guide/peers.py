"""Seconds, memory and errors of a training step among its peers: the table, that of growth, and their sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gp_rangeformer.lab.bench.floors import FLOOR, HOST_FLOOR
from gp_rangeformer.lab.bench.growth import exponent
from gp_rangeformer.lab.bench.peer_tables import matrix_mib, relative_seconds, series
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.bench.replay import WARM_UP
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.results import PeerRun, Results

PLUGIN, RECOMPUTED, CHOLESKY, CG = "rangeformer", "rangeformer:kernel_storage=tiles", "cholesky", "cg"
NAMES = {
    FLOOR: "floor",
    HOST_FLOOR: "GPyTorch's own kernel code, once",
    PLUGIN: "**RangeFormer**",
    RECOMPUTED: "RangeFormer, K recomputed",
    "exact": "this package's exact path",
    CHOLESKY: "GPyTorch Cholesky",
    CG: "GPyTorch CG, default",
    "cg-tight": "GPyTorch CG, tight",
    "gpflash": "gpflash (float64)",
}
# Of the cores' time: what GPyTorch does on one thread alone leaves it above this. Told from the size _FROM on.
_SHARED, _FROM = 0.7, 4000
_NONE = "-"


def peers_table(results: Results) -> str:
    """Contenders by size: seconds and peak memory; how many times faster; errors."""
    run = results.peers
    sizes = run.sizes
    known = [name for name in NAMES if any(size.row(name) for size in sizes)]
    rows = [(NAMES[name], *(_seconds_and_peak(size, name) for size in sizes)) for name in known]
    rows.append(("RangeFormer / floor", *(_ratio(size, PLUGIN, FLOOR) for size in sizes)))
    prefix = "faster than "
    for name in (CHOLESKY, CG, "gpflash", "exact"):
        rows.append((f"{prefix}{NAMES[name]}", *(_ratio(size, name, PLUGIN) for size in sizes)))
        prefix = "than "
    rows.append(("gradient error, RangeFormer / CG", *(_errors(size, "gradient_error", _percent) for size in sizes)))
    rows.append(("value error, RangeFormer / CG", *(_errors(size, "value_error", "{:.4f}".format) for size in sizes)))
    plan = run.plan
    notes = [
        f"{plan.dataset}, d = {sizes[0].d}, kernel {sizes[0].kernel} with a length-scale per dimension, {plan.dtype}, "
        f"seed {plan.seed}; {results.machine('peers')}",
        "value and gradient at the states of one Adam trajectory, contenders in turn; median after the third step, "
        "ratios within a step; MiB above what was held before",
        "errors against exact float64 at the same hyperparameters: relative (gradient), nats per point (value)",
    ]
    notes += _shared_note(sizes)
    return _markdown(Grid("", ("seconds a step (peak MiB)", *_columns(sizes)), tuple(rows), tuple(notes)))


def peers_sentence(results: Results) -> str:
    """What the figure says, in numbers, at the largest size at which GPyTorch's Cholesky was measured."""
    size = [size for size in results.peers.sizes if _complete(size, CHOLESKY)][-1]
    over = relative_seconds(size, PLUGIN)
    own, cg = _row(size, PLUGIN), _row(size, CG)
    errors = [_percent(row.outcome.summary()["gradient_error"]) for row in (own, cg)]
    return (
        f"At n = {size.n:,} a step takes {_short(own.seconds())} s; GPyTorch's Cholesky takes {over[CHOLESKY]:.0f} "
        f"times as long, its conjugate gradients {over[CG]:.0f} times, gpflash {over['gpflash']:.0f} times. The "
        f"gradient is off by {errors[0]} (conjugate gradients: {errors[1]})."
    )


def crossing_sentence(results: Results) -> str:
    """How far the plug-in leads over the fastest of the others at every size."""
    rivals = (CHOLESKY, CG, "cg-tight", "gpflash")
    first = _row(results.peers.sizes[0], PLUGIN).first_call
    found = []
    for size in results.peers.sizes:
        over = relative_seconds(size, PLUGIN)
        found.append(f"{min(over[name] for name in rivals if name in over):.1f} at n = {size.n:,}")
    return (
        "How many times faster a step is than the fastest of GPyTorch's Cholesky, its conjugate gradients and gpflash: "
        f"{', '.join(found)}. The plug-in's first call in the process took {_short(first)} s."
    )


def growth_table(results: Results) -> str:
    """The plug-in alone at more sizes, with exponents."""
    run = results.growth
    names = [name for name in NAMES if any(size.row(name) for size in run.sizes)]
    rows = []
    for name in names:
        seconds = series(run.sizes, name, Row.seconds)
        rows.append((NAMES[name], *(_seconds(size, name) for size in run.sizes), _power(seconds)))
    rows.append(("RangeFormer / floor", *(_ratio(size, PLUGIN, FLOOR) for size in run.sizes), _NONE))
    peaks = series(run.sizes, PLUGIN, lambda row: row.peak)
    over = [f"{peaks[size.n] / matrix_mib(size.n, run.plan.dtype):.2f}" for size in run.sizes]
    rows.append(("peak memory of RangeFormer / one K", *over, _NONE))
    notes = (
        f"{run.plan.dataset}, d = {run.sizes[0].d}, {run.plan.dtype}, {run.plan.steps} Adam steps, medians after the "
        f"third; {results.machine('growth')}",
        "power: p of seconds ~ n^p, least squares on logarithms from n = 2,000 on",
        *_shared_note(run.sizes),
    )
    return _markdown(Grid("", ("seconds a step", *_columns(run.sizes), "power"), tuple(rows), notes))


def growth_sentence(results: Results) -> str:
    """The exponents of the plug-in and of its peers."""
    own = _power(series(results.growth.sizes, PLUGIN, Row.seconds))
    others = {name: _power(series(results.peers.sizes, name, Row.seconds)) for name in (CHOLESKY, CG, "gpflash")}
    largest = results.growth.sizes[-1]
    return (
        f"Seconds a step grow as n^{own} up to n = {largest.n:,}; those of the peers, over the sizes at which they "
        f"were measured, as n^{others[CHOLESKY]} (GPyTorch Cholesky), n^{others[CG]} (its CG) and "
        f"n^{others['gpflash']} (gpflash). All {largest.n:,} training points of {results.growth.plan.dataset} take "
        f"{_short(_row(largest, PLUGIN).seconds())} s a step and {_row(largest, PLUGIN).peak:,.0f} MiB, one K being "
        f"{matrix_mib(largest.n, results.growth.plan.dtype):,.0f}."
    )


def series_by_name(run: PeerRun) -> dict[str, dict[int, float]]:
    """Seconds by contender and n."""
    names = dict.fromkeys(row.name for size in run.sizes for row in size.rows)
    return {name: found for name in names if (found := series(run.sizes, name, Row.seconds))}


def _markdown(grid: Grid) -> str:
    """Without a title: the page has one."""
    return grid.to_markdown(titled=False)


def _columns(sizes: Sequence[Size]) -> tuple[str, ...]:
    return tuple(f"n = {size.n:,}" for size in sizes)


def _row(size: Size, name: str) -> Row:
    row = size.row(name)
    assert row is not None, f"{name} was not measured at n = {size.n}"
    return row


def _complete(size: Size, name: str) -> bool:
    row = size.row(name)
    return row is not None and row.complete


def _shared(row: Row, size: Size) -> bool:
    """Whether a step that the median is made of had to share the cores."""
    # Steps of milliseconds are shorter than what the system counts processor time in.
    if not row.complete or size.n < _FROM:
        return False
    steps = sorted(zip(row.outcome.seconds[WARM_UP:], row.outcome.processor[WARM_UP:], strict=True))
    middle = steps[(len(steps) - 1) // 2 : len(steps) // 2 + 1]
    return any(processor < _SHARED * size.threads * seconds for seconds, processor in middle)


def _shared_note(sizes: Sequence[Size]) -> list[str]:
    """What a mark means, where there is one."""
    if not any(_shared(row, size) for size in sizes for row in size.rows):
        return []
    return [
        f"\\* other work was on the machine: in its median step the contender had less than {_SHARED:.0%} of the "
        f"cores' time (told from n = {_FROM:,} on)"
    ]


def _seconds(size: Size, name: str) -> str:
    row = size.row(name)
    if row is None or not row.complete:
        return _NONE
    return f"{_short(row.seconds())}{'*' if _shared(row, size) else ''}"


def _seconds_and_peak(size: Size, name: str) -> str:
    row = size.row(name)
    peak = "" if row is None or not row.complete or row.peak is None else f" ({row.peak:.0f})"
    return _seconds(size, name) + peak


def _ratio(size: Size, name: str, reference: str) -> str:
    over = relative_seconds(size, reference)
    if name not in over:
        return _NONE
    mark = "*" if any(_shared(_row(size, each), size) for each in (name, reference)) else ""
    return f"{over[name]:.1f}x{mark}"


def _errors(size: Size, what: str, form: Callable[[float], str]) -> str:
    found = [_row(size, name).outcome for name in (PLUGIN, CG)]
    return " / ".join(form(outcome.summary()[what]) if outcome.value_error else _NONE for outcome in found)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _short(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _power(values: dict[int, float]) -> str:
    found = exponent(values)
    return _NONE if found is None else f"{found:.1f}"
