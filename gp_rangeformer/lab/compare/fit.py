"""One training with the flag on, for ``gp-rangeformer fit``: hyperparameters, test error, predictions, last report."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from gp_rangeformer import SolveReport, clear_memory, last_report
from gp_rangeformer.fit import FitResult
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.convergence import train_to_convergence
from gp_rangeformer.lab.compare.result import Predictions, SolverResult, write_text
from gp_rangeformer.lab.compare.run import silent
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.compare.training import Observer, Run, Schedule, predict, train
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model, default_kernel
from gp_rangeformer.predict import LeaveOneOut, leave_one_out

_NORMAL_95 = 1.959964  # half-width of a central 95 % interval in standard deviations


@dataclass(frozen=True)
class Fit:
    """A trained model's numbers: ``result`` as in a comparison, and predictions at the test points in the target's
    own unit (each n_test long; the deviation includes the noise), or none where ``result.error`` says why."""

    dataset: Dataset
    kernel: str
    result: SolverResult
    mean: list[float]
    deviation: list[float]
    report: SolveReport | None
    fit: FitResult | None = None  # of a training to convergence
    left_out: LeaveOneOut | None = None  # in standardised units

    @property
    def hyperparameters(self) -> dict[str, float]:
        """At the end of training, in standardised units."""
        return self.result.steps[-1].hyperparameters

    def to_json(self, spec: SolverSpec, seed: int, device: str) -> dict[str, object]:
        """Every number but the predictions, for a result file."""
        found, result = self.fit, self.result
        content: dict[str, object] = {
            "format": 1,
            "machine": machine.describe(device),
            "dataset": self.dataset.name,
            "n": len(self.dataset.train_y),
            "n_test": len(self.dataset.test_y),
            "d": self.dataset.train_x.shape[1],
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
        if found is not None:
            content |= {
                "value": found.value,
                "error": found.error,
                "decrement": found.decrement,
                "noise": found.noise,
                "reason": found.reason,
                "notes": list(found.notes),
                "seconds": found.seconds,
                "evaluations": found.evaluations,
                "history": [
                    {**asdict(record), "value": record.value if math.isfinite(record.value) else None}
                    for record in found.history
                ],
            }
        return content

    def write_predictions(self, path: Path) -> None:
        """A CSV with one row per test point: target, mean, sd and 95 % interval in the target's unit, then inputs.

        The inputs are standardised, as the model saw them.
        """
        data = self.dataset
        target = (data.test_y.double() * data.target_scale + data.target_mean).tolist()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        inputs = [f"{name}_standardised" for name in data.feature_names]
        writer.writerow([data.target_name, "mean", "sd", "lower95", "upper95", *inputs])
        rows = zip(target, self.mean, self.deviation, data.test_x.tolist(), strict=True)
        for observed, mean, deviation, x in rows:
            margin = _NORMAL_95 * deviation
            writer.writerow([repr(v) for v in (observed, mean, deviation, mean - margin, mean + margin, *x)])
        write_text(path, text.getvalue())


def fit(
    dataset: Dataset,
    spec: SolverSpec,
    kernel: str | None = None,
    *,
    steps: int | None = None,
    lr: float = 0.1,
    device: str = "cpu",
    seed: int = 0,
    observer: Observer = silent,
) -> Fit:
    """Train with ``spec`` and predict at the test points.

    :param dataset: float64, as loaded.
    :param steps: of Adam, with rate ``lr``; None trains to convergence by :func:`gp_rangeformer.fit.fit_mll`.
    :param kernel: name of a kernel, None for the data set's default.
    :raises FloatingPointError, NotPSDError, NanError, FitError: the solver could not answer.
    """
    kernel = kernel or default_kernel(dataset)
    clear_memory()
    data = dataset.to(spec.torch_dtype, device)
    run = Run(SolverResult.of(spec))
    initial, found = build_model(dataset, kernel)[0].state_dict(), None
    if steps is None:
        model, found = train_to_convergence(run, spec, data, kernel, initial, seed, observer)
    else:
        model = train(run, spec, data, kernel, initial, Schedule(steps, lr), seed, observer)
    report = last_report() if found is None else found.report
    left_out = None
    try:
        prediction = predict(run, spec, model, data)
        with spec.active():
            left_out = leave_one_out(model)
    except (ArithmeticError, RuntimeError) as error:  # which must not cost the training
        run.result.error = f"the predictions failed: {error}"
        prediction = Predictions([], [])
    scale = dataset.target_scale
    return Fit(
        dataset,
        kernel,
        run.result,
        [scale * mean + dataset.target_mean for mean in prediction.mean],
        [scale * deviation for deviation in prediction.deviation],
        report,
        found,
        left_out,
    )


def _scores(found: LeaveOneOut | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "log_density": found.score,
        "rmse": found.rmse,
        "variance_error": found.variance_error,
        "coverage": [asdict(one) for one in found.coverage],
    }
