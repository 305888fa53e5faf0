"""One training with the flag on, for ``gp-rangeformer fit``: hyperparameters, test error, predictions, last report."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gp_rangeformer import SolveReport, clear_memory, collect_reports, last_report
from gp_rangeformer.fit import FitResult, Record
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.instruments import PeakMemory, synchronize
from gp_rangeformer.lab.compare.remaining import Remaining, about
from gp_rangeformer.lab.compare.result import SolverResult, Step, write_text
from gp_rangeformer.lab.compare.run import silent
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.compare.training import Observer, Run, Schedule, account, predict, train
from gp_rangeformer.lab.datasets import Dataset, Split, TableOptions
from gp_rangeformer.lab.models import build_model, default_kernel
from gp_rangeformer.predict import LeaveOneOut, leave_one_out
from gp_rangeformer.regression import TableRegression
from gp_rangeformer.regression.choice import kernel_names
from gp_rangeformer.regression.kernels import Covariance, build, covariance
from gp_rangeformer.regression.predictions import beside, with_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Fit:
    """A trained model's numbers: ``result`` as in a comparison, and ``predictions`` of the held-out rows in the
    target's own unit (the deviation includes the noise) beside their raw cells, or None where ``result.error`` says
    why."""

    split: Split
    kernel: str
    d: int
    target_scale: float
    result: SolverResult
    report: SolveReport | None
    predictions: pd.DataFrame | None = None
    model: TableRegression | None = None  # of a training to convergence
    left_out: LeaveOneOut | None = None  # in standardised units

    @property
    def fit(self) -> FitResult | None:
        return None if self.model is None else self.model.fit_result

    @property
    def hyperparameters(self) -> dict[str, float]:
        """At the end of training, in standardised units."""
        return self.result.steps[-1].hyperparameters

    def to_json(self, spec: SolverSpec, seed: int, device: str) -> dict[str, object]:
        """Every number but the predictions, for a result file."""
        model, found, result = self.model, self.fit, self.result
        content: dict[str, object] = {
            "format": 1,
            "machine": machine.describe(device),
            "dataset": self.split.name,
            "n": len(self.split.train),
            "n_test": len(self.split.held_out),
            "d": self.d,
            "kernel": self.kernel,
            "dtype": spec.dtype,
            "seed": seed,
            "rmse": result.rmse,
            "nll": result.nll,
            "prediction_seconds": result.prediction_seconds,
            "peak_memory": result.peak_memory,
            "peak_memory_with_prediction": result.peak_memory_with_prediction,
            "leave_one_out": _scores(self.left_out),
            "hyperparameters": self.hyperparameters,
            "fallbacks": result.fallbacks,
            "error": result.error,
        }
        if model is not None and found is not None:
            content |= {
                "candidates": [asdict(one) for one in model.candidates],
                "value": found.value,
                "value_error": found.error,
                "level": model.level,
                "certain": None if found.certain is None else [found.certain.lower, found.certain.upper],
                "converged": found.converged,
                "decrement": found.decrement,
                "noise": found.noise,
                "reason": found.reason,
                "notes": list(found.notes),
                "seconds": found.seconds,
                "evaluations": found.evaluations,
                "history": found.plain_history(),
            }
        return content

    def write_predictions(self, path: Path) -> None:
        """A CSV with one line per held-out row: its line or row in the file, target, mean, sd and 95 % interval in the
        target's unit, then the inputs as they were read."""
        if self.predictions is not None:
            write_text(path, self.predictions.to_csv(lineterminator="\n"))


def fit(
    split: Split,
    spec: SolverSpec,
    kernel: str | Covariance,
    options: TableOptions,
    *,
    device: str = "cpu",
    seed: int = 0,
    folder: Path | None = None,
    observer: Observer = silent,
) -> Fit:
    """Train to convergence with ``spec`` by :meth:`TableRegression.fit`, and predict the held-out rows.

    :param kernel: as that has it.
    :param folder: keeps the best parameters so far.
    :param options: what becomes of text and missing cells.
    :raises TableError, KernelError, FitError: as that does.
    """
    clear_memory()
    run = Run(SolverResult.of(spec))
    result, place = run.result, torch.device(device)
    # What the first model of a process imports is not what this one needs.
    build(torch.zeros(2, 1), torch.zeros(2), covariance("rbf", 1))
    run.memory = memory = PeakMemory(place)
    memory.start()
    n, seen, most = len(split.train), {}, {}
    remaining = Remaining((kernel.title,) if isinstance(kernel, Covariance) else kernel_names(kernel), n)

    def watch(name: str, record: Record) -> None:
        seen[name] = seen.get(name, 0) + 1
        most[name] = max(most.get(name, 1), seen[name] + 1)
        status = f"{record.value:.4f} +- {record.error:.4f} nats/point on {record.points} rows, {record.seconds:.1f} s"
        left = remaining(name, record)
        observer(name, seen[name], most[name], f"{status}, {left}" if left else status)

    with spec.active(), collect_reports() as reports:
        model = TableRegression.fit(
            split.train,
            target=split.target,
            kernel=kernel,
            encode=options.encode,
            missing=options.missing,
            dtype=spec.dtype,  # type: ignore[arg-type]
            device=device,
            seed=seed,
            callback=watch,
            folder=folder,
        )
    # The model was given rows that are complete: what became of others belongs to it all the same.
    model = TableRegression(replace(model._state, notes=(*split.notes, *model.notes)))
    found = model.fit_result
    assert found is not None
    result.peak_memory = memory.peak()
    end = Step(0, found.value, found.seconds, model.hyperparameters(), updated=False)
    account(result, end, list(reports), n)
    result.steps.append(end)
    done = seen.get(model.kernel, 0)  # 0: it was fitted before an interrupt
    observer(model.kernel, done, done, found.reason)
    scale = float(model.outputs.scale)
    fitted = Fit(split, model.kernel, len(model.columns.names), scale, result, found.report, model=model)
    try:
        return _with_predictions(fitted, model, spec, place, memory, observer)
    except (ArithmeticError, RuntimeError) as error:  # which must not cost the training
        result.error = f"the predictions failed: {error}"
        return fitted


def _with_predictions(
    fitted: Fit, model: TableRegression, spec: SolverSpec, device: torch.device, memory: PeakMemory, observer: Observer
) -> Fit:
    """RMSE and NLL in standardised units."""
    split, result, rows = fitted.split, fitted.result, len(fitted.split.held_out)
    left_out = None
    observer("prediction", 0, rows, "solving for the targets")
    with spec.active(), collect_reports() as reports:
        synchronize(device)
        started = time.perf_counter()
        found = model.predict(split.held_out, lambda done, total: observer("prediction", done, total, "rows"))
        synchronize(device)
        result.prediction_seconds = time.perf_counter() - started
        result.calls.update(f"{report.operation} {report.solver} {report.reason.name}" for report in reports)
        scale = fitted.target_scale
        observed, mean, sd = (
            np.asarray(cells, dtype=float) / scale
            for cells in (split.held_out[split.target], found["mean"], found["sd"])
        )
        error, variance = np.square(mean - observed), np.square(sd)
        result.rmse = float(np.sqrt(np.mean(error)))
        result.nll = float(np.mean(0.5 * (error / variance + np.log(2 * math.pi * variance))))
        observer("leave-one-out", 0, 1, "")
        try:
            left_out = leave_one_out(model.gp)
            observer("leave-one-out", 1, 1, f"{left_out.score:.4f} nats/point")
        except (ArithmeticError, RuntimeError) as error:  # which must not cost the predictions
            result.error = f"the leave-one-out scores failed: {error}"
        result.peak_memory_with_prediction = memory.peak()
    return Fit(
        split, fitted.kernel, fitted.d, scale, result, fitted.report,
        beside(found, split.held_out, split.target), model, left_out,
    )  # fmt: skip


def fit_by_adam(
    dataset: Dataset,
    split: Split,
    spec: SolverSpec,
    kernel: str | None = None,
    *,
    steps: int,
    lr: float = 0.1,
    device: str = "cpu",
    seed: int = 0,
    observer: Observer = silent,
) -> Fit:
    """Train with ``spec`` by so many steps of Adam, and predict the held-out rows.

    :param dataset: float64, as loaded.
    :param split: the same rows in their own units.
    :param kernel: name of a kernel, None for the data set's default.
    :raises FloatingPointError, NotPSDError, NanError: the solver could not answer.
    """
    kernel = kernel or default_kernel(dataset)
    clear_memory()
    data = dataset.to(spec.torch_dtype, device)
    run = Run(SolverResult.of(spec))
    initial = build_model(dataset, kernel)[0].state_dict()
    started = time.perf_counter()

    def watch(solver: str, done: int, total: int, status: str) -> None:
        left = (time.perf_counter() - started) / max(done, 1) * (total - done)
        observer(solver, done, total, f"{status}, {about(left)} left" if 0 < done < total else status)

    model = train(run, spec, data, kernel, initial, Schedule(steps, lr), seed, watch)
    report, d, scale = last_report(), dataset.train_x.shape[1], dataset.target_scale
    predictions, left_out = None, None
    failing = "predictions"
    try:
        found = predict(run, spec, model, data)
        mean = scale * np.array(found.mean) + dataset.target_mean
        frame = with_interval(mean, scale * np.array(found.deviation), split.held_out.index)
        predictions = beside(frame, split.held_out, dataset.target_name)
        failing = "leave-one-out scores"
        with spec.active():
            left_out = leave_one_out(model)
        if run.memory is not None:
            run.result.peak_memory_with_prediction = run.memory.peak()
    except (ArithmeticError, RuntimeError) as error:  # which must not cost what there is
        run.result.error = f"the {failing} failed: {error}"
    return Fit(split, kernel, d, scale, run.result, report, predictions, left_out=left_out)


def _scores(found: LeaveOneOut | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "log_density": found.score,
        "rmse": found.rmse,
        "variance_error": found.variance_error,
        "coverage": [asdict(one) for one in found.coverage],
    }
