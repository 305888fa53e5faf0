"""Leave-one-out scores: seconds against a training step of the same model, and against the exact formula."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import gpytorch
import torch

from gp_rangeformer import clear_memory, predict, settings
from gp_rangeformer.lab.bench.prediction_calls import repeated, said, timed
from gp_rangeformer.lab.bench.prediction_data import Fitted
from gp_rangeformer.lab.bench.prediction_exact import ExactModel

_STEPS, _WARM_UP, _RATE = 8, 3, 0.01


@dataclass(frozen=True)
class LeftOut:
    """``leave_one_out`` of one model.

    :param seconds: on a fresh model; ``step``: of a training step with the flag, its median after the third.
    :param stated: relative standard error of the variances, as the result says.
    :param error: root mean square of the errors of the log densities in nats, ``largest``: of one, ``score_error``: of
        their mean; None where nothing exact is known.
    :param failure: why there is none.
    """

    seconds: float | None = None
    step: float | None = None
    stated: float | None = None
    error: float | None = None
    largest: float | None = None
    score_error: float | None = None
    failure: str | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LeftOut:
        return cls(**content)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure_left_out(fitted: Fitted, exact: ExactModel | None) -> LeftOut:
    """Scores of all targets, held against the inverse of ``exact`` where there is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds, found = repeated(fitted.build, predict.leave_one_out)
            step = _step(fitted)
    # Whatever it is: it is told, and must not cost the rest of the run.
    except Exception as error:
        return LeftOut(failure=said(error))
    finally:
        clear_memory()
    error = largest = of_score = None
    if exact is not None:
        off = found.log_density - exact.left_out()
        error, largest, of_score = float(off.square().mean().sqrt()), float(off.abs().max()), float(off.mean().abs())
    return LeftOut(seconds, step, found.variance_error, error, largest, of_score)


def _step(fitted: Fitted) -> float:
    """Value, gradient and Adam update near the optimum."""
    clear_memory()
    model: Any = fitted.build().train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss: Any = -mll(model(fitted.data.train_x), fitted.data.train_y)  # type: ignore[operator]
        loss.backward()
        optimizer.step()

    with settings.rangeformer():
        seconds = [timed(step)[0] for _ in range(_STEPS)]
    return median(seconds[_WARM_UP:])
