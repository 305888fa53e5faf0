"""The tables of a comparison: arrival, audit and cost; for the terminal and as GitHub markdown."""

from __future__ import annotations

from gp_rangeformer.lab.compare.result import Comparison, SolverResult, State
from gp_rangeformer.lab.compare.solvers import PLUGIN
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.system.answers import Interval

_NONE = "-"


def tables(comparison: Comparison) -> tuple[Grid, ...]:
    """Where the solvers arrive, how far each was from exact values on the way, and what it cost."""
    return arrival(comparison), audit(comparison), cost(comparison)


def arrival(comparison: Comparison) -> Grid:
    """Where each solver's training arrived: likelihood with its intervals, exact likelihood there, predictions."""
    rows = [_arrival_row(result) for result in comparison.results if not result.timing_only]
    notes = [
        "exact there: float64 value at the hyperparameters that the solver reached; RMSE, NLL: standardised units",
        "left out: every training point given all others, exactly or to a few thousandths, whoever trained",
    ]
    notes.extend(f"{result.name}: {result.description}" for result in comparison.results if result.converges)
    notes.extend(_surprises(comparison))
    level = _level(comparison)
    if level is not None:
        notes.append(f"likely: half the statistical interval at {level:.0%}; certain: the rigorous interval")
    return Grid(
        f"Arrival: {_what(comparison)}, {comparison.steps} Adam steps",
        (
            "solver",
            "log p(y)/n\nreported",
            "interval\nlikely ±",
            "interval\ncertain",
            "exact\nthere",
            "minus\nreference's",
            "test\nRMSE",
            "test\nNLL",
            "left out\nNLL",
        ),
        tuple(rows),
        tuple(notes),
    )


def _surprises(comparison: Comparison) -> list[str]:
    """What a reader may take for a mistake."""
    reference = comparison.reference
    adam = None if reference is None else reference.nll
    return [
        f"{result.name}: its parameters are likelier by the training rows, and predict these test rows less well; of a "
        "forecast the kernel's assumptions decide more than the fit"
        for result in comparison.results
        if result.converges and adam is not None and result.nll is not None
        if result.nll > adam and (result.difference or 0) > 0
    ]


def _arrival_row(result: SolverResult) -> tuple[str, ...]:
    s = result.summary()
    lower, upper = s["interval_lower"], s["interval_upper"]
    certain = _NONE if lower is None or upper is None else "[{}, {}]".format(*Interval(lower, upper).outward(3))
    return (
        _label(result),
        _fixed(s["reported_value"], 4),
        _short(_half_width(s["statistical_lower"], s["statistical_upper"])),
        certain,
        _fixed(s["exact_value"], 4),
        _NONE if result.is_reference else _signed(s["difference_to_reference"]),
        _fixed(s["rmse"], 4),
        _fixed(s["nll"], 4),
        _fixed(s["left_out_nll"], 4),
    )


def audit(comparison: Comparison) -> Grid:
    """Value, gradient and intervals against exact float64 at the same hyperparameters, over the audited steps."""
    notes = ["value: nats per point; gradient: |g - g64| / |g64| over all raw hyperparameters"]
    if any(audit.stated is not None for result in comparison.results for audit in result.audits):
        notes.append(
            "stated: the standard error in the reports, relative to the gradient over log hyperparameters without the "
            "mean's, as last measured; its mean over the audited steps"
        )
    check = comparison.reference_check
    reference = comparison.reference
    if reference is not None:
        notes.insert(0, f"reference: {reference.description}")
    if check is not None:
        notes.insert(
            1,
            f"reference against {check.against}: value {check.value_difference:+.0e}, gradient "
            f"{check.gradient_difference:.0e}",
        )
    return Grid(
        f"Audit: {_what(comparison)}. Errors against exact float64 at the same hyperparameters",
        (
            "solver",
            "steps\naudited",
            "value\nmean",
            "value\nlargest",
            "gradient\nstart",
            "gradient\nmean",
            "gradient\nstated",
            "gradient\nend",
            "exact is\nin likely",
            "exact is\nin certain",
        ),
        tuple(_audit_row(result) for result in comparison.results if result.audits),
        tuple(notes),
    )


def _audit_row(result: SolverResult) -> tuple[str, ...]:
    s = result.summary()
    inside = [
        f"{s[f'{kind}_containing']} of {s[f'{kind}_checked']}" if s[f"{kind}_checked"] else _NONE
        for kind in ("statistical", "rigorous")
    ]
    return (
        _label(result),
        str(len(result.audits)),
        _short(s["value_error_mean"]),
        _short(s["value_error_max"]),
        _percent(s["gradient_error_start"]),
        _percent(s["gradient_error_mean"]),
        _percent(s["gradient_stated_mean"]),
        _percent(s["gradient_error_end"]),
        *inside,
    )


def _level(comparison: Comparison) -> float | None:
    return next((step.level for result in comparison.results for step in result.steps if step.level), None)


def cost(comparison: Comparison) -> Grid:
    """What a step takes: seconds, passes over K, iterations, memory; and what did not go as asked."""
    return Grid(
        f"Cost: {_what(comparison)}. Seconds; a step is one value and gradient, and the update",
        (
            "solver",
            "first\nstep",
            "step\nmedian",
            "steps",
            "training\ntotal",
            "prediction",
            "passes\nper step",
            "columns\nper step",
            "iterations\nper step",
            "peak\nMiB",
            "fell back,\ndeclined",
        ),
        tuple(_cost_row(result) for result in comparison.results),
        tuple(_cost_notes(comparison)),
    )


def _cost_row(result: SolverResult) -> tuple[str, ...]:
    s = result.summary()
    updates = sum(step.updated for step in result.steps)
    plugin = result.base in PLUGIN
    return (
        _label(result),
        _seconds(s["seconds_first"]),
        _seconds(s["seconds_per_step"]),
        str(updates),
        _seconds(s["seconds_total"]),
        _seconds(s["prediction_seconds"]),
        _fixed(s["passes_per_step"], 1),
        _fixed(s["columns_per_step"], 0),
        _fixed(s["iterations_per_step"], 1),
        _fixed(s["peak_memory"], 0),
        f"{result.fallbacks}, {sum(result.declined.values())}" if plugin and result.steps else _NONE,
    )


def _cost_notes(comparison: Comparison) -> list[str]:
    notes = ["median, passes, columns and iterations: over the steps after the third"]
    for result in comparison.results:
        if result.error:
            notes.append(f"{result.name} failed at step {len(result.steps)}: {result.error.splitlines()[0]}")
        elif result.state is State.INTERRUPTED:
            notes.append(f"{result.name}: interrupted after {sum(step.updated for step in result.steps)} steps")
        answered = {name: sum(step.answered_by == name for step in result.steps) for name in ("rangeformer", "exact")}
        if result.base == "rangeformer" and result.steps:
            reasons = [f"{count} x {reason}" for reason, count in result.fallback_reasons.items()]
            told = f"; fell back: {'; '.join(reasons)}" if reasons else ""
            notes.append(
                f"{result.name}: {answered['rangeformer']} evaluations answered by the RangeFormer solver, "
                f"{answered['exact']} by the exact path{told}"
            )
        if result.declined:
            reasons = [f"{count} x {reason}" for reason, count in result.declined.items()]
            notes.append(f"{result.name}: left to GPyTorch: {'; '.join(reasons)}")
    return notes


def markdown(comparison: Comparison, machine: str, command: str) -> str:
    """The tables with a caption that says how to get them again.

    :param machine: one line, what it ran on.
    :param command: the command line.
    """
    caption = (
        f"{_what(comparison)}, {comparison.steps} Adam steps, {comparison.dtype}, seed {comparison.seed}; {machine}; "
        f"`{command}`"
    )
    return "\n\n".join([*(grid.to_markdown() for grid in tables(comparison)), f"*{caption}*"]) + "\n"


def _what(comparison: Comparison) -> str:
    d = comparison.dataset.train_x.shape[1]
    return f"{comparison.dataset.name}, n = {comparison.n}, d = {d}, kernel {comparison.kernel}"


def _label(result: SolverResult) -> str:
    base, _, overrides = result.name.partition(":")
    marks = overrides.split("+") if overrides else []
    if result.timing_only:
        marks.append("timing only")
    if result.state is not State.DONE:
        marks.append(result.state.value)
    return base + "".join(f"\n{mark}" for mark in marks)


def _half_width(lower: float | None, upper: float | None) -> float | None:
    return None if lower is None or upper is None else 0.5 * (upper - lower)


def _fixed(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return _NONE if value is None else f"{value:+.4f}"


def _short(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.4f}" if value >= 1e-4 or value == 0 else f"{value:.0e}"


def _percent(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{100 * value:.1f}%" if value >= 5e-4 else f"{value:.0e}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"
