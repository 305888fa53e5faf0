"""The comparison of one data set: reference, then every solver from the same start, each audited after its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gp_rangeformer import clear_memory
from gp_rangeformer.lab.compare.audit import ExactEvaluator, check_reference, relative_error
from gp_rangeformer.lab.compare.convergence import train_by_lbfgs, train_to_convergence
from gp_rangeformer.lab.compare.result import Audit, Comparison, ReferenceCheck, SolverResult, State
from gp_rangeformer.lab.compare.solvers import SolverSpec, reference_spec
from gp_rangeformer.lab.compare.training import Observer, Run, Schedule, counted_warnings, predict, train
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model, default_kernel
from gp_rangeformer.predict import leave_one_out


@dataclass(frozen=True)
class Options:
    """What is the same for every solver.

    :param kernel: name of a kernel, None for the data set's default.
    :param audit_every: compare value, gradient and intervals with exact float64 at every so many steps (each costs one
        float64 factorisation and inverse); 0: at the first and the last evaluation only.
    :param timing_steps: steps of the solvers that are only timed.
    :param reference_check: check the reference against GPyTorch's float64 Cholesky at the start.
    """

    kernel: str | None = None
    steps: int = 30
    lr: float = 0.1
    audit_every: int = 10
    timing_steps: int = 5
    device: str = "cpu"
    seed: int = 0
    reference_check: bool = True


def silent(solver: str, done: int, total: int, status: str) -> None:
    """An observer that shows nothing."""


def compare(
    dataset: Dataset,
    solvers: Sequence[SolverSpec],
    options: Options | None = None,
    *,
    observer: Observer = silent,
    save: Callable[[Comparison], None] = lambda comparison: None,
) -> Comparison:
    """Train the same GP from the same start with the reference and each of ``solvers``.

    A solver that raises is recorded with its message and the next one runs. KeyboardInterrupt ends the comparison: it
    is returned as far as it came, with ``interrupted`` set.

    :param dataset: float64, as loaded.
    :param save: called after every solver, and once more at the end.
    """
    options = options or Options()
    kernel = options.kernel or default_kernel(dataset)
    dtype = solvers[0].dtype if solvers else "float64"
    comparison = Comparison(dataset, kernel, options.steps, dtype, options.seed)
    try:
        exact = ExactEvaluator(dataset.to(torch.float64, options.device), kernel)
        initial = build_model(dataset, kernel)[0].state_dict()
        for spec in (reference_spec(comparison.n), *solvers):
            run = Run(SolverResult.of(spec))
            comparison.results.append(run.result)
            _run_solver(comparison, run, spec, initial, exact, options, observer)
            save(comparison)
    except KeyboardInterrupt:
        comparison.interrupted = True
    save(comparison)
    return comparison


def _run_solver(
    comparison: Comparison,
    run: Run,
    spec: SolverSpec,
    initial: Mapping[str, Tensor],
    exact: ExactEvaluator,
    options: Options,
    observer: Observer,
) -> None:
    result, kernel = run.result, comparison.kernel
    clear_memory()
    schedule = Schedule(options.steps, options.lr, options.audit_every)
    if spec.timing_only:
        schedule = Schedule(options.timing_steps, options.lr, final=False)
    try:
        observer(spec.name, 0, schedule.evaluations, "the first step")
        data = comparison.dataset.to(spec.torch_dtype, options.device)
        if spec.base == "rangeformer-fit":
            model, _ = train_to_convergence(run, spec, data, kernel, initial, options.seed, observer)
        elif spec.base == "cholesky-lbfgs":
            model = train_by_lbfgs(run, spec, data, kernel, initial, options.seed, observer)
        else:
            model = train(run, spec, data, kernel, initial, schedule, options.seed, observer)
        if not spec.timing_only:
            predict(run, spec, model, data)
            result.left_out_nll = _left_out_nll(result, model)
        del model
        if spec.is_reference and options.reference_check:
            observer(spec.name, len(result.steps), len(result.steps), "checking against GPyTorch's Cholesky")
            comparison.reference_check = _reference_check(spec, run, exact)
        _audit(run, spec, exact, observer)
        result.state = State.DONE
    except Exception as error:
        result.state = State.FAILED
        result.error = f"{type(error).__name__}: {error}"
        observer(spec.name, len(result.steps), schedule.evaluations, f"failed: {type(error).__name__}")
        return
    reference = comparison.reference
    if result.exact_value is not None and reference is not None and reference.exact_value is not None:
        result.difference = result.exact_value - reference.exact_value


def _reference_check(spec: SolverSpec, run: Run, exact: ExactEvaluator) -> ReferenceCheck:
    start = run.remembered[0]
    if spec.base == "exact":
        return check_reference(exact, start.parameters)
    assert start.gradient is not None
    closed_form = exact(start.parameters)
    return ReferenceCheck(
        against="the plug-in's float64 closed form, value and gradient at the start",
        value_difference=run.result.steps[0].value - closed_form.value,
        gradient_difference=relative_error(start.gradient, closed_form.gradient),
    )


def _left_out_nll(result: SolverResult, model: torch.nn.Module) -> float | None:
    """By the plug-in's defaults, whoever trained: the same judge for all. None where it fails, which is counted."""
    try:
        with counted_warnings(result):
            return -leave_one_out(model).score
    except (ArithmeticError, RuntimeError) as error:
        result.warnings[f"leave-one-out: {type(error).__name__}"] += 1
        return None


def _audit(run: Run, spec: SolverSpec, exact: ExactEvaluator, observer: Observer) -> None:
    """Exact values and gradients at the remembered steps."""
    result = run.result
    final = result.final
    if spec.is_reference and spec.base == "exact":
        # Its own values are the exact ones: auditing them would repeat them.
        result.exact_value = None if final is None else final.value
        return
    for number, (index, remembered) in enumerate(sorted(run.remembered.items()), start=1):
        truth = exact(remembered.parameters)
        step = result.steps[index]
        gradient = remembered.gradient
        error = None if gradient is None else relative_error(gradient, truth.gradient)
        intervals = step.interval, step.statistical
        result.audits.append(Audit(index, step.value, truth.value, error, *intervals, stated=step.stated))
        if final is not None and index == final.step:
            result.exact_value = truth.value
        status = f"exact value {number} of {len(run.remembered)}"
        observer(spec.name, len(result.steps), len(result.steps), status)
    observer(spec.name, len(result.steps), len(result.steps), _outcome(result))


def _outcome(result: SolverResult) -> str:
    seconds = result.summary()["seconds_per_step"]
    value = f"{result.exact_value:.4f} nats/point, " if result.exact_value is not None else ""
    return f"{value}{seconds:.2f} s/step" if seconds is not None else "no step"
