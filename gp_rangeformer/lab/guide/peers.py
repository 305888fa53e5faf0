"""Seconds, memory and errors of a training step among its peers: the table, that of growth, and their sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gp_rangeformer.lab.bench.floors import FLOOR, HOST_FLOOR
from gp_rangeformer.lab.bench.growth import ASYMPTOTIC, exponent
from gp_rangeformer.lab.bench.peer_tables import matrix_mib, relative_seconds, series
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.results import PeerRun, Results
from gp_rangeformer.lab.guide.steadiness import (
    FROM,
    SHARED,
    any_disturbed,
    bounds,
    disturbed,
    spoken,
    steady_seconds,
    times,
    undisturbed,
)

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
_SPOKEN = {CHOLESKY: "GPyTorch's Cholesky", CG: "its conjugate gradients", "gpflash": "gpflash"}
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
        "ratios within a step, the middle half of them where its ends are more than a factor 1.5 apart; MiB above what "
        "was held before",
        "errors against exact float64 at the same hyperparameters: relative (gradient), nats per point (value)"
        f"{_up_to(sizes)}",
    ]
    notes += [*_shared_note(sizes), *_left_out_notes(sizes, known)]
    return _markdown(Grid("", ("seconds a step (peak MiB)", *_columns(sizes)), tuple(rows), tuple(notes)))


def peers_sentence(results: Results) -> str:
    """What the figure says, in numbers, at the largest size at which GPyTorch's Cholesky was measured, and what becomes
    of it at the end of a fit."""
    size = [size for size in results.peers.sizes if undisturbed(size, PLUGIN, CHOLESKY)][-1]
    end = _at_the_end(results, size.n)
    return (
        f"At n = {size.n:,} an early step takes {_short(_row(size, PLUGIN).seconds())} s; {_compared(size)}"
        f"{_kept(results, size.n)}{end[0]}. The gradient is off by {_gradients(size)}{end[1]}."
    )


def kept_sentence(results: Results) -> str:
    """The host with a malloc that keeps memory, where that was measured."""
    if results.kept is None:
        return ""
    found = [f"at n = {size.n:,} {compared}" for size in results.kept.sizes if (compared := _compared(size))]
    return f"With an allocator that keeps memory (`--keep-memory`): {'; '.join(found)}."


def crossing_sentence(results: Results) -> str:
    """How far the plug-in leads over the fastest of the others at every size."""
    rivals = (CHOLESKY, CG, "cg-tight", "gpflash")
    first = _row(results.peers.sizes[0], PLUGIN).first_call
    found = []
    for size in results.peers.sizes:
        over = relative_seconds(size, PLUGIN)
        fastest = min((name for name in rivals if undisturbed(size, name, PLUGIN)), key=over.__getitem__, default=None)
        if fastest is not None:
            found.append(f"{times(size, fastest, PLUGIN)} at n = {size.n:,}")
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
        rows.append((NAMES[name], *(_seconds(size, name) for size in run.sizes), _power(run.sizes, name)))
    rows.append(("RangeFormer / floor", *(_ratio(size, PLUGIN, FLOOR) for size in run.sizes), _NONE))
    peaks = series(run.sizes, PLUGIN, lambda row: row.peak)
    over = [f"{peaks[size.n] / matrix_mib(size.n, run.plan.dtype):.2f}" for size in run.sizes]
    rows.append(("peak memory of RangeFormer / one K", *over, _NONE))
    notes = (
        f"{run.plan.dataset}, d = {run.sizes[0].d}, {run.plan.dtype}, {run.plan.steps} Adam steps, medians after the "
        f"third; {results.machine('growth')}",
        "power: p of seconds ~ n^p, least squares on logarithms from n = 2,000 on, as far as each goes",
        *_shared_note(run.sizes),
        *_left_out_notes(run.sizes, names),
    )
    return _markdown(Grid("", ("seconds a step", *_columns(run.sizes), "power"), tuple(rows), notes))


def growth_sentence(results: Results) -> str:
    """The exponents of the plug-in and of its peers over the same sizes, and the plug-in's further on."""
    names = (PLUGIN, CHOLESKY, CG, "gpflash")
    common = [size for size in results.peers.sizes if size.n >= ASYMPTOTIC and undisturbed(size, *names)]
    powers = {name: _power(common, name) for name in names}
    peers = ", ".join(f"n^{powers[name]} ({NAMES[name]})" for name in names[1:])
    run = results.growth
    largest = run.sizes[-1]
    own = _row(largest, PLUGIN)
    return (
        f"Seconds a step grow from n = {common[0].n:,} to {common[-1].n:,} as n^{powers[PLUGIN]}; those of the peers, "
        f"over the same sizes, as {peers}. Up to n = {largest.n:,} the plug-in's grow as "
        f"n^{_power(run.sizes, PLUGIN)}; all {largest.n:,} training points of {run.plan.dataset} take "
        f"{_short(own.seconds())} s a step and {own.peak:,.0f} MiB, one K being "
        f"{matrix_mib(largest.n, run.plan.dtype):,.0f}."
    )


def series_by_name(run: PeerRun) -> dict[str, dict[int, float]]:
    """Seconds by contender and n, without what was disturbed."""
    names = dict.fromkeys(row.name for size in run.sizes for row in size.rows)
    return {name: found for name in names if (found := steady_seconds(run.sizes, name))}


def _compared(size: Size) -> str:
    """How many times as long as the plug-in the others take, of those that were measured."""
    found = [(title, times(size, name, PLUGIN)) for name, title in _SPOKEN.items()]
    told = [(title, ratio) for title, ratio in found if ratio is not None]
    return ", ".join(
        f"{title} {'' if place else 'takes '}{ratio} times{'' if place else ' as long'}"
        for place, (title, ratio) in enumerate(told)
    )


def _kept(results: Results, n: int) -> str:
    """Half a sentence, where an allocator that keeps memory was measured at this size."""
    size = next((size for size in results.kept.sizes if size.n == n), None) if results.kept else None
    found = [] if size is None else [times(size, name, PLUGIN) or _NONE for name in (CHOLESKY, CG)]
    return f" (the first two with an allocator that keeps memory: {' and '.join(found)} times)" if found else ""


def _at_the_end(results: Results, n: int) -> tuple[str, str]:
    """The same set's step at an optimum, and its gradient's error where that was audited."""
    sizes = results.optima[results.peers.plan.dataset].sizes
    size = next((size for size in sizes if size.n == n and undisturbed(size, CHOLESKY, PLUGIN)), None)
    audited = [size for size in sizes if _row(size, PLUGIN).outcome.gradient_error]
    if size is None or not audited:
        return "", ""
    seconds = _short(_row(size, PLUGIN).seconds())
    error = _percent(_row(audited[-1], PLUGIN).outcome.summary()["gradient_error"])
    where = "" if audited[-1].n == n else f" (n = {audited[-1].n:,})"
    return (
        f"; at the end of a fit, where the noise is small, a step takes {seconds} s, Cholesky "
        f"{times(size, CHOLESKY, PLUGIN)} times as long",
        f", at the end by {error} of what is left of it{where}",
    )


def _gradients(size: Size) -> str:
    """Their relative errors, of who was audited."""
    own, cg = (size.row(name) for name in (PLUGIN, CG))
    told = [
        _percent(row.outcome.summary()["gradient_error"]) for row in (own, cg) if row and row.outcome.gradient_error
    ]
    return told[0] + (f" (conjugate gradients: {told[1]})" if told[1:] else "")


def _markdown(grid: Grid) -> str:
    """Without a title: the page has one."""
    return grid.to_markdown(titled=False)


def _columns(sizes: Sequence[Size]) -> tuple[str, ...]:
    return tuple(f"n = {size.n:,}" for size in sizes)


def _row(size: Size, name: str) -> Row:
    row = size.row(name)
    assert row is not None, f"{name} was not measured at n = {size.n}"
    return row


def _shared_note(sizes: Sequence[Size]) -> list[str]:
    """What a mark means, where there is one."""
    if not any_disturbed(sizes):
        return []
    return [
        f"\\* other work was on the machine: in its median step the contender, or the floor beside it, had less than "
        f"{SHARED:.0%} of the cores' time (told from n = {FROM:,} on); sentences, powers and figures leave these out"
    ]


def _up_to(sizes: Sequence[Size]) -> str:
    """Where errors end, if not with the table."""
    audited = [size.n for size in sizes if _row(size, PLUGIN).outcome.gradient_error]
    return f"; asked for up to n = {audited[-1]:,}" if audited and audited[-1] < sizes[-1].n else ""


def _left_out_notes(sizes: Sequence[Size], names: Sequence[str]) -> list[str]:
    """Why a cell is empty."""
    notes = []
    for size in sizes:
        rows = {name: size.row(name) for name in names}
        reasons = [f"{NAMES[name]}: {row.outcome.left_out}" for name, row in rows.items() if row and not row.complete]
        if absent := [NAMES[name] for name, row in rows.items() if row is None]:
            reasons.append(f"not asked for: {', '.join(absent)}")
        if reasons:
            notes.append(f"-, n = {size.n:,}: {'; '.join(reasons)}")
    return notes


def _seconds(size: Size, name: str) -> str:
    row = size.row(name)
    if row is None or not row.complete:
        return _NONE
    return f"{_short(row.seconds())}{'*' if disturbed(size, name) else ''}"


def _seconds_and_peak(size: Size, name: str) -> str:
    row = size.row(name)
    peak = "" if row is None or not row.complete or row.peak is None else f" ({row.peak:.0f})"
    return _seconds(size, name) + peak


def _ratio(size: Size, name: str, reference: str) -> str:
    found = bounds(size, name, reference)
    if found is None:
        return _NONE
    return f"{spoken(found, '-')}x{'' if undisturbed(size, name, reference) else '*'}"


def _errors(size: Size, what: str, form: Callable[[float], str]) -> str:
    found = [_row(size, name).outcome for name in (PLUGIN, CG)]
    return " / ".join(form(outcome.summary()[what]) if outcome.value_error else _NONE for outcome in found)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _short(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _power(sizes: Sequence[Size], name: str) -> str:
    found = exponent(steady_seconds(sizes, name))
    return _NONE if found is None else f"{found:.1f}"
