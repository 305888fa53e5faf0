"""From what the elements of a batch did to the one report that their call publishes."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from linear_operator.operators import AddedDiagLinearOperator, LinearOperator
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.plugin.eligibility import EligibleSystem
from gp_rangeformer.plugin.owners import trim_memory
from gp_rangeformer.rangeformer.direct import DirectPrepared
from gp_rangeformer.report import NEGLIGIBLE_ERROR, GradientError, SolveReport, publish
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.exact import FACTORISED_IN_FLOAT64
from gp_rangeformer.solvers.exact_batch import BatchEvaluation
from gp_rangeformer.system.answers import Evaluation, LogDet, Prepared, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason


class Call:
    """Collects what the elements of one batch did, and publishes one report."""

    def __init__(self, operation: str, system: EligibleSystem, columns: int) -> None:
        self.started = time.perf_counter()
        self.published = False
        self.system = system
        kernel = system.kernel
        self.report = SolveReport(
            operation,
            solver="rangeformer",
            reason=Reason.CONVERGED,
            n=kernel.shape[-1],
            batch_shape=tuple(kernel.shape[:-2]),
            dtype=str(kernel.dtype).removeprefix("torch."),
            device=str(kernel.device),
            columns=columns,
            notes=() if system.note is None else (system.note,),
        )

    def add(self, linear_system: LinearSystem, prepared: Prepared, reason: Reason, **changes: object) -> None:
        """Account for one batch element; ``changes`` are fields of the report."""
        report = replace(self.report, **changes)  # type: ignore[arg-type]
        notes = report.notes
        exact = prepared.exact
        if exact is not None:
            notes = tuple(dict.fromkeys((*notes, *exact.notes())))
        passes, columns_multiplied = linear_system.take_counts()
        self.report = replace(
            report,
            solver="exact" if report.solver == "exact" else _answered_by(prepared),
            reason=reason if report.reason is Reason.CONVERGED else report.reason,
            passes=report.passes + passes,
            columns_multiplied=report.columns_multiplied + columns_multiplied,
            notes=notes,
        )

    def add_gradient(self, found: GradientError | None, tolerance: float) -> None:
        """How well one batch element's gradient is known: the report keeps the worst, and notes one whose standard
        error exceeds ``tolerance`` of it."""
        known = self.report.gradient
        if found is None or (known is not None and known.relative >= found.relative):
            return
        self.report = replace(self.report, gradient=found)
        if found.excess(tolerance, NEGLIGIBLE_ERROR * self.report.n) > 1:
            self.note(f"gradient uncertain: its standard error is {found.relative:.0%}; more num_probes lower it")

    def note(self, note: str) -> None:
        """Add a note to the report, once."""
        self.report = replace(self.report, notes=tuple(dict.fromkeys((*self.report.notes, note))))

    def publish(self) -> None:
        self.published = True
        publish(replace(self.report, seconds=time.perf_counter() - self.started))
        trim_memory(settings.memory_limit.value())


def report_declined(operation: str, operator: LinearOperator, reason: Reason, columns: int = 0) -> None:
    kernel: Any = operator
    like: Any = operator
    if type(operator) is AddedDiagLinearOperator:
        # Of the parts: linear_operator derives shape and dtype of a sum anew each time, a tenth of a small step.
        kernel, like = operator._linear_op, operator._diag_tensor
    shape = kernel.shape
    publish(
        SolveReport(
            operation,
            solver="gpytorch",
            reason=reason,
            n=shape[-1],
            batch_shape=tuple(shape[:-2]),
            dtype=str(like.dtype).removeprefix("torch."),
            device=str(like.device),
            columns=columns,
        )
    )


def account_training(
    call: Call, system: LinearSystem, prepared: Prepared, evaluation: Evaluation, exact_reason: Reason | None
) -> None:
    report, logdet = call.report, evaluation.logdet
    changes: dict[str, object] = {
        "iterations": report.iterations + evaluation.solution.iterations,
        "residual": max(report.residual, evaluation.residual),
    }
    if logdet is not None:
        tolerance = prepared.solver.logdet_tolerance if isinstance(prepared, CertifiedPrepared) else math.inf
        changes |= _likelihood(report, evaluation, logdet, tolerance)
    reason = evaluation.fallback_reason or exact_reason or evaluation.solution.reason
    call.add(system, prepared, reason, **changes)


def account_batch(call: Call, count: int, evaluation: BatchEvaluation, exact_reason: Reason) -> None:
    """As :func:`account_training` of every element."""
    report, logdet, interval = call.report, evaluation.logdet, evaluation.logdet_interval
    changes: dict[str, object] = {}
    if logdet is not None and interval is not None:
        total = float(logdet.sum())
        changes |= {"logdet": total, "logdet_interval": interval, "logdet_method": "exact"}
        if report.columns == 1:
            constant = -0.5 * count * report.n * math.log(2 * math.pi)
            changes["mll"] = -0.5 * (float(evaluation.inv_quad.sum()) + total) + constant
            changes["mll_interval"] = (evaluation.inv_quad_interval + interval).scaled(-0.5).shifted(constant)
    promoted = evaluation.factorised_in != call.system.noise.dtype
    call.report = replace(
        report,
        solver="exact",
        reason=exact_reason,
        residual=evaluation.residual,
        passes=count,
        columns_multiplied=count * report.columns,
        notes=(*report.notes, FACTORISED_IN_FLOAT64) if promoted else report.notes,
        **changes,  # type: ignore[arg-type]
    )


def _likelihood(report: SolveReport, evaluation: Evaluation, logdet: LogDet, tolerance: float) -> dict[str, object]:
    """Add one batch element's log determinant and, for one right-hand side, its log marginal likelihood.

    :param tolerance: uncertainty of log|A|, in nats per point, above which a note says so.
    """
    statistical = logdet.statistical or logdet.rigorous if report.logdet_statistical or logdet.statistical else None
    before = report.logdet_statistical or report.logdet_interval
    changes: dict[str, object] = {
        "logdet": logdet.value + (report.logdet or 0.0),
        "logdet_interval": logdet.rigorous + report.logdet_interval if report.logdet_interval else logdet.rigorous,
        "logdet_statistical": statistical + before if statistical and before else statistical,
        "logdet_level": logdet.level or report.logdet_level,
        "logdet_method": logdet.method,
    }
    if report.columns == 1:
        constant = -0.5 * report.n * math.log(2 * math.pi)
        quadratic = evaluation.solution.inv_quad[0]
        rigorous = (quadratic + logdet.rigorous).scaled(-0.5).shifted(constant)
        # In float64: rounded to the dtype of the system it may leave its own interval.
        value = -0.5 * (float(evaluation.solution.quadratic[0]) + logdet.value) + constant
        changes["mll"] = value + (report.mll or 0.0)
        changes["mll_interval"] = rigorous + report.mll_interval if report.mll_interval else rigorous
        if statistical is not None:
            likely = (quadratic + (logdet.statistical or logdet.rigorous)).scaled(-0.5).shifted(constant)
            earlier = report.mll_statistical or report.mll_interval
            changes["mll_statistical"] = likely + earlier if earlier else likely
    notes = [] if logdet.note is None else [logdet.note]
    if logdet.statistical is not None and logdet.statistical.width > 2 * tolerance * report.n:
        half = 0.5 * logdet.statistical.width / report.n
        note = f"log determinant uncertain: +- {half:.2g} nats per point at {logdet.level:.0%}"
        notes.append(note)
    changes["notes"] = tuple(dict.fromkeys((*report.notes, *notes)))
    return changes


def account_solve(
    call: Call, system: LinearSystem, prepared: Prepared, solution: Solution, exact_reason: Reason | None
) -> None:
    report = call.report
    # Where the exact path alone was asked there was nothing to fall back from: what it could not do is a note.
    reason = exact_reason or solution.reason
    known = [error for error in (report.mean_error, solution.mean_error) if error is not None]
    call.add(
        system,
        prepared,
        reason,
        iterations=report.iterations + solution.iterations,
        residual=max(report.residual, _largest(solution.residual)),
        mean_error=max(known) if known else None,
    )


def _answered_by(prepared: Prepared) -> str:
    """Not by the settings: a backward pass may be made under others than its forward pass."""
    if prepared.exact is not None:
        return "exact"
    return "direct" if isinstance(prepared, DirectPrepared) else "rangeformer"


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
