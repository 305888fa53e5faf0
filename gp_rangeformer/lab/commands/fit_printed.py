"""What ``gp-rangeformer fit`` prints of a model that it trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from gp_rangeformer.lab.commands.console import open_console

if TYPE_CHECKING:
    from gp_rangeformer.lab.compare.fit import Fit
    from gp_rangeformer.lab.compare.result import SolverResult
    from gp_rangeformer.regression import TableRegression


def print_fit(fitted: Fit) -> None:
    """Hyperparameters, errors of the test rows, cost, certificates."""
    from gp_rangeformer.regression.errors import counted  # with PyTorch, which help does not wait for

    console, result, split = open_console(), fitted.result, fitted.split
    rows = f"{len(split.train):,} training, {counted(len(split.held_out), 'test row')}"
    console.print(f"{split.source}: {rows}", markup=False)
    if fitted.model is not None and fitted.model.candidates:
        console.print(_comparison(fitted.model))
    table = Table("hyperparameter", "value (standardised units)", box=None, pad_edge=False)
    for name, value in fitted.hyperparameters.items():
        table.add_row(escape(name), f"{value:.5g}")
    console.print(table)
    if fitted.model is not None:
        _print_relevance(fitted.model)
    if result.error is None:
        rmse = (result.rmse or 0.0) * fitted.target_scale
        console.print(
            f"test RMSE {result.rmse:.4f} standardised, {rmse:.5g} in {split.target}; test NLL {result.nll:.4f}",
            markup=False,
        )
    else:
        open_console(stderr=True).print(result.error, style="red", markup=False, soft_wrap=True)
    if fitted.left_out is not None:
        left_out = fitted.left_out.summary(split.target, fitted.target_scale)
        console.print(left_out, markup=False, soft_wrap=True)
    console.print(_cost_line(result), soft_wrap=True)
    if result.fallbacks or result.declined:
        console.print(f"steps that fell back: {result.fallbacks}; left to GPyTorch: {sum(result.declined.values())}")
    if fitted.fit is not None:
        console.print(fitted.fit.summary(), markup=False)
    if fitted.report is not None:
        console.print(fitted.report.summary(), markup=False)
    if fitted.model is not None:
        console.print(fitted.model.certificate(), markup=False, soft_wrap=True)


def _comparison(model: TableRegression) -> Table:
    """A row for every kernel that was fitted, the best first."""
    from gp_rangeformer.fit.result import shown  # with PyTorch

    rows = model.candidates[0].rows
    table = Table("kernel", f"log p(y)/n on {rows} rows", "leave-one-out", "s", "", box=None, pad_edge=False)
    for one in model.candidates:
        if one.value is None:
            table.add_row(one.kernel, "-", "-", "-", escape(f"failed: {one.failure}"))
            continue
        left_out = "-" if one.leave_one_out is None else f"{one.leave_one_out:.4f} +- {one.leave_one_out_error:.1g}"
        said = "chosen" if one.kernel == model.kernel else ""
        said += "" if one.converged else " (not converged)"
        value = shown(one.value, one.error or 0.0, one.rounding)
        table.add_row(one.kernel, value, left_out, f"{one.seconds:.1f}", said.strip())
    return table


def _print_relevance(model: TableRegression) -> None:
    """Nothing of a kernel without length-scales."""
    try:
        found = model.relevance()
    except ValueError:
        return
    table = Table("column", "relevance (standard deviations per length-scale)", box=None, pad_edge=False)
    for name, value in found.items():
        table.add_row(escape(str(name)), f"{value:.3g}")
    open_console().print(table)


def _cost_line(result: SolverResult) -> str:
    """Seconds, passes and memory of one training, as far as they are known."""
    summary = result.summary()
    median, total, passes = summary["seconds_per_step"], summary["seconds_total"], summary["passes_per_step"]
    parts = []
    if median is not None and passes is not None:
        parts.append(f"{median:.3f} s/step (median), {passes:.1f} passes over K")
    seconds = total if total is not None else sum(step.seconds for step in result.steps)
    parts.append(f"training {seconds:.1f} s, prediction {result.prediction_seconds or 0:.1f} s")
    if result.peak_memory is not None:
        memory = f"peak memory {result.peak_memory:.0f} MiB"
        if result.peak_memory_with_prediction is not None:
            memory += f", with predictions {result.peak_memory_with_prediction:.0f} MiB"
        parts.append(f"{memory}, beside what was held before")
    return "; ".join(parts)
