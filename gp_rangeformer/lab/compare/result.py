"""What a comparison found, as plain numbers: one record per step, audit, solver and data set, and the result file.

Likelihoods, their differences and their intervals are in nats per training point, gradients are of that quantity with
respect to all raw hyperparameters together, times are in seconds, memory is in MiB.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from statistics import mean, median
from typing import Any

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.compare.solvers import CONVERGING, REFERENCE, SolverSpec
from gp_rangeformer.lab.datasets import Dataset

FORMAT = 1
Bounds = tuple[float, float]


class State(str, Enum):
    """How a solver's run ended."""

    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass
class Step:
    """One evaluation of value and gradient. ``seconds`` includes the optimiser's update where there was one.

    ``passes``: products with K (None for GPyTorch's Cholesky). ``interval`` is rigorous, ``statistical`` holds with
    probability ``level``; both None for GPyTorch. ``stated``: the relative standard error that the plug-in gives of
    its gradient; None where that is exact, and for GPyTorch.
    """

    step: int
    value: float
    seconds: float
    hyperparameters: dict[str, float]
    updated: bool = True
    passes: int | None = None
    columns: int | None = None
    iterations: int | None = None
    residual: float | None = None
    interval: Bounds | None = None
    statistical: Bounds | None = None
    level: float | None = None
    stated: float | None = None
    answered_by: str = ""


@dataclass
class Audit:
    """One step against the exact float64 value and gradient at the same hyperparameters."""

    step: int
    value: float
    exact_value: float
    gradient_error: float | None  # |g - g64| / |g64|; None at an optimum, where that says nothing
    interval: Bounds | None = None
    statistical: Bounds | None = None
    stated: float | None = None  # what the solver said of gradient_error

    @property
    def value_error(self) -> float:
        return abs(self.value - self.exact_value)


@dataclass
class Predictions:
    """Predictive mean and standard deviation (noise included) at the test points, in standardised units."""

    mean: list[float]
    deviation: list[float]


@dataclass
class SolverResult:
    """One solver on one data set. Lists and counts grow while it runs, so an interrupted run keeps what it has."""

    name: str
    base: str
    description: str
    dtype: str
    timing_only: bool = False
    overrides: dict[str, object] = field(default_factory=dict)
    state: State = State.INTERRUPTED
    error: str | None = None
    steps: list[Step] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    fallbacks: int = 0
    fallback_reasons: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)  # "operation solver REASON", training and prediction
    warnings: Counter[str] = field(default_factory=Counter)
    rmse: float | None = None
    nll: float | None = None
    left_out_nll: float | None = None  # leave-one-out, over the training points, by the plug-in's defaults
    prediction_seconds: float | None = None
    peak_memory: float | None = None  # of training, MiB above what was held before it
    peak_memory_with_prediction: float | None = None  # of training and prediction, above the same
    predictions: Predictions | None = None
    exact_value: float | None = None  # at the hyperparameters reached
    difference: float | None = None  # of exact_value to the reference's

    @classmethod
    def of(cls, spec: SolverSpec) -> SolverResult:
        return cls(spec.name, spec.base, spec.describe(), spec.dtype, spec.timing_only, overrides=dict(spec.overrides))

    @property
    def is_reference(self) -> bool:
        return self.name == REFERENCE

    @property
    def converges(self) -> bool:
        """Whether its steps are not those of the others: it has an optimiser of its own."""
        return self.base in CONVERGING

    @property
    def final(self) -> Step | None:
        """The evaluation at the hyperparameters reached, None before a full run has come there."""
        return self.steps[-1] if self.steps and not self.steps[-1].updated else None

    def audit_at(self, step: int) -> Audit | None:
        return next((audit for audit in self.audits if audit.step == step), None)

    def summary(self) -> dict[str, Any]:
        """The numbers of the tables by name: floats and counts, None where there is nothing to tell."""
        final = self.final
        updates = [step for step in self.steps if step.updated]
        steady = updates[3:] or updates
        last = None if final is None else self.audit_at(final.step)
        start = self.audit_at(0)
        rigorous = [audit.interval for audit in self.audits if audit.interval]
        statistical = [audit.statistical for audit in self.audits if audit.statistical]
        return {
            "reported_value": None if final is None else final.value,
            "interval_lower": final.interval[0] if final and final.interval else None,
            "interval_upper": final.interval[1] if final and final.interval else None,
            "statistical_lower": final.statistical[0] if final and final.statistical else None,
            "statistical_upper": final.statistical[1] if final and final.statistical else None,
            "statistical_level": None if final is None else final.level,
            "exact_value": self.exact_value,
            "difference_to_reference": self.difference,
            "gradient_error_start": None if start is None else start.gradient_error,
            "gradient_error_end": None if last is None else last.gradient_error,
            "gradient_error_mean": _mean([audit.gradient_error for audit in self.audits]),
            "gradient_stated_mean": _mean([audit.stated for audit in self.audits]),
            "value_error_mean": _mean([audit.value_error for audit in self.audits]),
            "value_error_max": max((audit.value_error for audit in self.audits), default=None),
            "rigorous_checked": len(rigorous),
            "rigorous_containing": sum(
                _contains(audit.interval, audit.exact_value) for audit in self.audits if audit.interval
            ),
            "statistical_checked": len(statistical),
            "statistical_containing": sum(
                _contains(audit.statistical, audit.exact_value) for audit in self.audits if audit.statistical
            ),
            "rmse": self.rmse,
            "nll": self.nll,
            "left_out_nll": self.left_out_nll,
            "seconds_first": updates[0].seconds if updates else None,
            "seconds_per_step": median(step.seconds for step in steady) if steady else None,
            "seconds_total": sum(step.seconds for step in updates) if updates else None,
            "prediction_seconds": self.prediction_seconds,
            "passes_per_step": _mean([step.passes for step in steady]),
            "columns_per_step": _mean([step.columns for step in steady]),
            "iterations_per_step": _mean([step.iterations for step in steady]),
            "peak_memory": self.peak_memory,
            "peak_memory_with_prediction": self.peak_memory_with_prediction,
            "fallbacks": self.fallbacks,
            "declined": sum(self.declined.values()),
        }


@dataclass
class ReferenceCheck:
    """The reference against one independent evaluation at the start value, both float64."""

    against: str
    value_difference: float
    gradient_difference: float  # relative
    seconds: float | None = None


@dataclass
class Comparison:
    """All solvers on one data set."""

    dataset: Dataset
    kernel: str
    steps: int
    dtype: str
    seed: int
    results: list[SolverResult] = field(default_factory=list)
    reference_check: ReferenceCheck | None = None
    interrupted: bool = False

    @property
    def n(self) -> int:
        return len(self.dataset.train_y)

    @property
    def reference(self) -> SolverResult | None:
        return next((result for result in self.results if result.is_reference), None)

    def result(self, name: str) -> SolverResult | None:
        return next((result for result in self.results if result.name == name), None)

    def to_json(self) -> dict[str, object]:
        dataset = self.dataset
        return {
            "dataset": {
                "name": dataset.name,
                "n": self.n,
                "n_test": len(dataset.test_y),
                "d": dataset.train_x.shape[1],
                "features": list(dataset.feature_names),
                "target": dataset.target_name,
                "target_mean": dataset.target_mean,
                "target_scale": dataset.target_scale,
                "source": dataset.source,
            },
            "kernel": self.kernel,
            "steps": self.steps,
            "dtype": self.dtype,
            "seed": self.seed,
            "interrupted": self.interrupted,
            "reference_check": plain(self.reference_check),
            "solvers": [{**_as_dict(result), "summary": plain(result.summary())} for result in self.results],
        }


def plain(value: object) -> object:
    """``value`` in JSON's own types; numbers that are not finite become None, which JSON can say."""
    if is_dataclass(value) and not isinstance(value, type):
        return _as_dict(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _as_dict(value: object) -> dict[str, object]:
    return {item.name: plain(getattr(value, item.name)) for item in fields(value)}  # type: ignore[arg-type]


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write atomically: a reader, or an interrupt, meets the old file or the new one, never half of one."""
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """As :func:`write_json`, for any text. The folder is made if it is not there.

    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    write_bytes(path, text.encode())


def _mean(values: list[float] | list[float | None] | list[int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return mean(known) if known else None


def _contains(bounds: Bounds | None, value: float) -> bool:
    return bounds is not None and bounds[0] <= value <= bounds[1]
