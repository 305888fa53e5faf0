"""One training to convergence by :func:`gp_rangeformer.fit.fit_mll`, with the evidence of a comparison's runs."""

from __future__ import annotations

from collections.abc import Mapping

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import collect_reports
from gp_rangeformer.fit import FitResult, Record, fit_mll
from gp_rangeformer.lab.compare.instruments import PeakMemory
from gp_rangeformer.lab.compare.result import Step
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.compare.training import Observer, Run, account, counted_warnings
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
    """Fit a fresh model with ``spec`` and fill ``run``: a step for every evaluation on all points.

    :param dataset: in the solver's dtype, on its device.
    :param initial: state of the model that training starts from.
    :raises FitError: an evaluation failed.
    """
    torch.manual_seed(seed)
    run.memory = memory = PeakMemory(dataset.train_x.device)
    memory.start()
    model, likelihood = build_model(dataset, kernel)
    model.load_state_dict(dict(initial))
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    n, before, most = len(dataset.train_y), 0.0, 1

    with counted_warnings(run.result), spec.active(), collect_reports() as reports:
        seen = 0

        def watch(record: Record) -> None:
            nonlocal before, seen, most
            seconds, before = record.seconds - before, record.seconds
            if record.points == n:
                names = hyperparameters(model, dataset.feature_names)
                step = Step(len(run.result.steps), record.value, seconds, names)
                account(run.result, step, list(reports)[seen:], n)
                run.result.steps.append(step)
            seen, most = len(reports), max(most, len(run.result.steps) + 1)
            run.result.peak_memory = memory.peak()
            observer(spec.name, len(run.result.steps), most, f"{record.value:.4f} nats/point on {record.points} rows")

        result = fit_mll(mll, callback=watch, seed=seed)
    run.result.peak_memory = memory.peak()
    names = hyperparameters(model, dataset.feature_names)
    end = Step(len(run.result.steps), result.value, 0.0, names, updated=False)
    if result.report is not None:
        account(run.result, end, [result.report], n)
    run.result.steps.append(end)
    return model, result
