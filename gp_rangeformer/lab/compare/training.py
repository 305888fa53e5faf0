"""The timed run of one solver: Adam on the negative log marginal likelihood, then predictions at the test points."""

from __future__ import annotations

import contextlib
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import collect_reports
from gp_rangeformer.lab.compare.audit import gradient_vector, snapshot
from gp_rangeformer.lab.compare.instruments import PeakMemory, count_products, synchronize
from gp_rangeformer.lab.compare.result import Predictions, SolverResult, Step
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import Regression, build_model, hyperparameters
from gp_rangeformer.report import SolveReport


class Observer(Protocol):
    """Who watches a comparison: a progress display, or nobody."""

    def __call__(self, solver: str, done: int, total: int, status: str) -> None:
        """``done`` of ``total`` evaluations of ``solver`` are made; ``status`` is a few words."""


@dataclass(frozen=True)
class Schedule:
    """How long a solver trains and which of its steps are remembered for the audit.

    :param steps: Adam steps; the value and gradient at the point reached are evaluated once more, ``final``.
    :param audit_every: remember every so many steps, beside the first and the last; 0 for those two alone.
    """

    steps: int
    lr: float = 0.1
    audit_every: int = 0
    final: bool = True

    @property
    def evaluations(self) -> int:
        return self.steps + self.final

    def is_audited(self, step: int) -> bool:
        if step == 0 or (self.final and step == self.steps):
            return True
        return self.final and self.audit_every > 0 and step % self.audit_every == 0


@dataclass
class Remembered:
    """What an audited step left: its parameters, and the solver's own gradient there (float64, CPU) if it is judged."""

    parameters: dict[str, Tensor]
    gradient: Tensor | None


@dataclass
class Run:
    """A run in progress: the numbers for the result file, and what the audit needs and the file does not."""

    result: SolverResult
    remembered: dict[int, Remembered] = field(default_factory=dict)
    memory: PeakMemory | None = None  # since the start of training


def train(
    run: Run,
    spec: SolverSpec,
    dataset: Dataset,
    kernel: str,
    initial: Mapping[str, Tensor],
    schedule: Schedule,
    seed: int,
    observer: Observer,
) -> Regression:
    """Train a fresh model with ``spec`` and fill ``run`` step by step. Returns the model.

    :param dataset: in the solver's dtype, on its device.
    :param initial: state of the model that training starts from, the same for every solver.
    :raises FloatingPointError: the solver's value is not finite.
    """
    device = dataset.train_x.device
    torch.manual_seed(seed)
    run.memory = memory = PeakMemory(device)
    memory.start()
    model, likelihood = build_model(dataset, kernel)
    model.load_state_dict(dict(initial))
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=schedule.lr)
    n = len(dataset.train_y)
    counting = count_products(n) if spec.uses_cg else contextlib.nullcontext()
    with counted_warnings(run.result), spec.active(), counting as products:
        for index in range(schedule.evaluations):
            updated = index < schedule.steps
            names = hyperparameters(model, dataset.feature_names)
            parameters = snapshot(model) if schedule.is_audited(index) else None
            with collect_reports() as reports:
                synchronize(device)
                started = time.perf_counter()
                optimizer.zero_grad()
                loss = -mll(model(dataset.train_x), dataset.train_y)  # type: ignore[operator]
                loss.backward()
                synchronize(device)
                evaluated = time.perf_counter()
                gradient = gradient_vector(model) if parameters is not None else None
                resumed = time.perf_counter()
                if updated:
                    optimizer.step()
                synchronize(device)
            seconds = time.perf_counter() - resumed + evaluated - started
            step = Step(index, -loss.item(), seconds, names, updated)
            if products is not None:
                count = products.take()
                step.passes, step.columns, step.iterations = count.products, count.columns, count.iterations
            account(run.result, step, list(reports), n)
            if not math.isfinite(step.value):
                raise FloatingPointError(f"the log marginal likelihood is {step.value} at step {index}")
            run.result.steps.append(step)
            if parameters is not None and gradient is not None:
                run.remembered[index] = Remembered(parameters, gradient)
            run.result.peak_memory = memory.peak()
            observer(spec.name, index + 1, schedule.evaluations, f"{step.value:.4f} nats/point, {seconds:.2f} s/step")
    return model


def predict(run: Run, spec: SolverSpec, model: Regression, dataset: Dataset) -> Predictions:
    """Mean and deviation at the test points by the same solver; fills RMSE and NLL (standardised units), seconds and
    memory.

    Predictions of one-dimensional data are kept in ``run.result``, for the figure.
    """
    result = run.result
    device = dataset.test_x.device
    likelihood = model.likelihood
    assert likelihood is not None
    model.eval()
    with counted_warnings(result), spec.active(), torch.no_grad(), collect_reports() as reports:
        synchronize(device)
        started = time.perf_counter()
        prediction = likelihood(model(dataset.test_x))
        average, variance = prediction.mean, prediction.variance
        synchronize(device)
        result.prediction_seconds = time.perf_counter() - started
    if run.memory is not None:
        result.peak_memory_with_prediction = run.memory.peak()
    _count_calls(result, list(reports))
    average, variance = average.double().cpu(), variance.double().cpu()
    target = dataset.test_y.double().cpu()
    error = average - target
    result.rmse = float(error.square().mean().sqrt())
    result.nll = float(0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi)).mean())
    predictions = Predictions(average.tolist(), variance.sqrt().tolist())
    if dataset.train_x.shape[1] == 1:
        result.predictions = predictions
    return predictions


def account(result: SolverResult, step: Step, reports: list[SolveReport], n: int) -> None:
    """Move the evidence of one evaluation from the plug-in's reports into the step and the result."""
    _count_calls(result, reports)
    for report in reports:
        if report.fell_back:
            result.fallbacks += 1
            result.fallback_reasons[report.reason.value] += 1
        if report.solver == "gpytorch":
            result.declined[report.reason.value] += 1
    answered = [report for report in reports if report.solver != "gpytorch"]
    if not answered:
        step.answered_by = "gpytorch"
        return
    step.answered_by = answered[-1].solver
    step.passes = sum(report.passes for report in answered)
    step.columns = sum(report.columns_multiplied for report in answered)
    step.iterations = sum(report.iterations for report in answered)
    step.residual = max(report.residual for report in answered)
    likelihood = next((report for report in reversed(answered) if report.mll is not None), None)
    if likelihood is None:
        return
    step.level = likelihood.logdet_level
    step.stated = None if likelihood.gradient is None else likelihood.gradient.relative
    if likelihood.mll_interval is not None:
        interval = likelihood.mll_interval.scaled(1 / n)
        step.interval = (interval.lower, interval.upper)
    if likelihood.mll_statistical is not None:
        interval = likelihood.mll_statistical.scaled(1 / n)
        step.statistical = (interval.lower, interval.upper)


def _count_calls(result: SolverResult, reports: list[SolveReport]) -> None:
    result.calls.update(f"{report.operation} {report.solver} {report.reason.name}" for report in reports)


@contextlib.contextmanager
def counted_warnings(result: SolverResult) -> Iterator[None]:
    """Warnings are counted by their text instead of interrupting the progress display."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            result.warnings.update(
                f"{item.category.__name__}: {_without_numbers(str(item.message))}" for item in caught
            )


def _without_numbers(message: str) -> str:
    """The first line with every number as #, so that the same warning at two steps counts as one."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", message.splitlines()[0] if message else "")
