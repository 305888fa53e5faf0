"""The likelihood of few points, uphill between bounds as scikit-learn goes: L-BFGS, values and gradients exact."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from gp_rangeformer.fit import FitResult
from gp_rangeformer.fit.result import NO_FURTHER_GAIN, Record
from gp_rangeformer.sklearn.few_points import Evaluation, FewPoints

METHOD = "L-BFGS"


class _Objective:
    """Minus log p(y) as a function of theta, the best that it has seen, and every evaluation."""

    def __init__(self, points: FewPoints, n: int) -> None:
        self._points, self._n, self._started = points, n, time.perf_counter()
        self.history: list[Record] = []
        self.best: tuple[NDArray[np.float64], Evaluation] | None = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def __call__(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """:raises numpy.linalg.LinAlgError: the start cannot be evaluated; a later point is infinitely bad."""
        self._points.move(theta)
        try:
            found = self._points.evaluate()
        except np.linalg.LinAlgError:
            if self.best is None:
                raise
            self.history.append(Record(self._n, self.seconds, -math.inf, 0.0, False))
            return math.inf, np.zeros_like(theta)
        better = self.best is None or found.value > self.best[1].value
        if better:
            self.best = theta.copy(), found
        self.history.append(Record(self._n, self.seconds, found.value / self._n, 0.0, better))
        return -found.value, -found.gradient


def maximise_between_bounds(
    points: FewPoints, n: int, start: NDArray[np.float64], bounds: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.float64], float, FitResult]:
    """The best theta, log p(y) there, and how the search ended; ``points`` are left there.

    :param start: theta; what is beyond the bounds is moved onto them.
    :param bounds: p x 2, of theta.
    :param tolerance: nats per point: a fit that has less left to gain has converged.
    :raises numpy.linalg.LinAlgError: the start cannot be evaluated.
    """
    objective: Any = _Objective(points, n)
    ended = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    theta, best = objective.best
    points.move(theta, best)
    lower, upper = bounds.T
    held = ((theta <= lower) & (best.gradient < 0)) | ((theta >= upper) & (best.gradient > 0))
    decrement = 0.0 if held.all() else points.quadratic_model(best, ~held).newton_decrement()
    converged = decrement < tolerance  # also where rounding has ended the last line search
    result = FitResult(
        value=best.value / n,
        error=0.0,
        certain=None,
        decrement=decrement,
        noise=0.0,
        converged=converged,
        reason="converged" if converged else NO_FURTHER_GAIN if ended.success else str(ended.message),
        method=METHOD,
        evaluations={n: len(objective.history)},
        seconds=objective.seconds,
        history=tuple(objective.history),
        report=None,
    )
    return theta, best.value, result
