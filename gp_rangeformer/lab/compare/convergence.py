"""One training to convergence, by fit_mll or L-BFGS, with the evidence of a comparison's runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import collect_reports
from gp_rangeformer.fit import FitResult, Record, fit_mll
from gp_rangeformer.lab.compare.audit import snapshot
from gp_rangeformer.lab.compare.instruments import PeakMemory
from gp_rangeformer.lab.compare.lbfgs import maximise
from gp_rangeformer.lab.compare.result import Step
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.compare.training import Observer, Remembered, Run, account, counted_warnings
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import Regression, build_model, hyperparameters


def train_to_convergence(
    run: Run,
    spec: SolverSpec,
    dataset: Dataset,
    kernel: str,
    initial: Mapping[str, Tensor],
    seed: int,
    observer: Observer,
) -> tuple[Regression, FitResult]:
    """Fit a fresh model with ``spec`` and fill ``run``: a step for every evaluation on all points, which what was done
    on subsets before it counts to.

    :param dataset: in the solver's dtype, on its device.
    :param initial: state of the model that training starts from.
    :raises FitError: an evaluation failed.
    """
    mll, memory = _fresh(run, dataset, kernel, initial, seed)
    n, before, most, seen = len(dataset.train_y), 0.0, 1, 0
    with counted_warnings(run.result), spec.active(), collect_reports() as reports:

        def watch(record: Record) -> None:
            nonlocal before, most, seen
            if record.points == n:
                _add(run, mll, dataset, record.value, record.seconds - before)
                account(run.result, run.result.steps[-1], list(reports)[seen:], n)
                before = record.seconds
            seen, most = len(reports), max(most, len(run.result.steps) + 1)
            run.result.peak_memory = memory.peak()
            observer(spec.name, len(run.result.steps), most, f"{record.value:.4f} nats/point on {record.points} rows")

        result = fit_mll(mll, callback=watch, seed=seed)
    run.result.peak_memory = memory.peak()
    _add(run, mll, dataset, result.value, 0.0, end=True)
    if result.report is not None:
        account(run.result, run.result.steps[-1], [result.report], n)
    return mll.model, result


def train_by_lbfgs(
    run: Run,
    spec: SolverSpec,
    dataset: Dataset,
    kernel: str,
    initial: Mapping[str, Tensor],
    seed: int,
    observer: Observer,
) -> Regression:
    """As :func:`train_to_convergence`, by :func:`gp_rangeformer.lab.compare.lbfgs.maximise`."""
    mll, memory = _fresh(run, dataset, kernel, initial, seed)
    before = time.perf_counter()
    with counted_warnings(run.result), spec.active():

        def watch(value: float) -> None:
            nonlocal before
            now = time.perf_counter()
            _add(run, mll, dataset, value, now - before)
            run.result.peak_memory = memory.peak()
            done = len(run.result.steps)
            observer(spec.name, done, done + 1, f"{value:.4f} nats/point")
            before = time.perf_counter()

        value, _ = maximise(mll, watch)
    _add(run, mll, dataset, value, 0.0, end=True)
    return mll.model


def _fresh(run: Run, dataset: Dataset, kernel: str, initial: Mapping[str, Tensor], seed: int) -> tuple[Any, PeakMemory]:
    """The likelihood of a model at its start, and what watches the memory from here on."""
    torch.manual_seed(seed)
    run.memory = memory = PeakMemory(dataset.train_x.device)
    memory.start()
    model, likelihood = build_model(dataset, kernel)
    model.load_state_dict(dict(initial))
    return gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model), memory


def _add(run: Run, mll: Any, dataset: Dataset, value: float, seconds: float, end: bool = False) -> None:
    """A step where the model is now; the end is remembered for the audit, without a gradient: it vanishes there."""
    steps = run.result.steps
    if end:
        run.remembered[len(steps)] = Remembered(snapshot(mll.model), None)
    names = hyperparameters(mll.model, dataset.feature_names)
    steps.append(Step(len(steps), value, seconds, names, updated=not end))
