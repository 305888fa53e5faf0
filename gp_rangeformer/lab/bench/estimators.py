"""scikit-learn's GaussianProcessRegressor and the estimator in its place: one evaluation, one fit, one prediction.

Both get the same float64 data, kernel and start. scikit-learn's fit is its own L-BFGS-B, which is stopped when patience
ends; where it is then counts. Likelihoods where fits ended are exact, scikit-learn's own, outside every timing.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from gp_rangeformer import clear_memory
from gp_rangeformer.fit.result import USED_UP
from gp_rangeformer.lab.bench.estimator_cell import Contender, EstimatorCell
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.sklearn import RangeFormerRegressor

_ALPHA = 1e-10  # both classes' default
_EVALUATIONS = 3  # that one is the median of
_WARM_POINTS = 200

Arrays = tuple[NDArray[np.float64], NDArray[np.float64]]
Gpr: Any = GaussianProcessRegressor  # whose defaults say less than its documentation of what it takes


class _OutOfTimeError(Exception):
    """Ends an optimiser of scipy."""


class _Stopped:
    """scikit-learn's own optimiser, with its options, until patience ends."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.evaluations, self.ended = 0, True

    def __call__(
        self, objective: Callable[[Any], Any], initial_theta: Any, bounds: Any
    ) -> tuple[NDArray[np.float64], float]:
        started, best = time.perf_counter(), (np.asarray(initial_theta), np.inf)

        def watched(theta: NDArray[np.float64]) -> Any:
            nonlocal best
            if time.perf_counter() - started > self._patience:
                raise _OutOfTimeError
            self.evaluations += 1
            value, gradient = objective(theta)
            if value < best[1]:
                best = theta.copy(), value
            return value, gradient

        try:
            scipy.optimize.minimize(watched, initial_theta, method="L-BFGS-B", jac=True, bounds=bounds)
        except _OutOfTimeError:
            self.ended = False
        return best


def start_kernel(d: int) -> Any:
    """A variance, Matern-3/2 with a length scale for each of d columns, and noise; all of them 1, between 1e-5 and
    1e5."""
    lengths: Any = np.ones(d)
    return ConstantKernel() * Matern(lengths, nu=1.5) + WhiteKernel()


def warm_up() -> None:
    """What only first calls pay for: imports, compiled code, threads."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(_WARM_POINTS, 2)), rng.normal(size=_WARM_POINTS)
    for estimator in (Gpr(start_kernel(2), optimizer=None), RangeFormerRegressor(start_kernel(2))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(x, y).predict(x, return_std=True)


def measure(dataset: Dataset, *, patience: float, observer: Callable[[str], None] = lambda text: None) -> EstimatorCell:
    """Both, one after the other.

    :param dataset: float64, on the CPU.
    :param patience: seconds after which scikit-learn's fit is stopped.
    """
    train = dataset.train_x.numpy(), dataset.train_y.numpy()
    test = dataset.test_x.numpy(), dataset.test_y.numpy()
    (n, d), t = train[0].shape, len(test[0])
    kernel = start_kernel(d)

    def saying(doing: str) -> None:
        observer(f"{dataset.name}, n = {n:,}: {doing}")

    clear_memory()
    saying("RangeFormerRegressor")
    ours_fitted = RangeFormerRegressor(kernel, alpha=_ALPHA)
    fit, _ = _timed(lambda: _quietly(ours_fitted, train))
    result = ours_fitted.fit_result_
    assert result is not None
    prediction, predicted = _timed(lambda: ours_fitted.predict(test[0], return_std=True))
    started = RangeFormerRegressor(kernel, alpha=_ALPHA, optimizer=None).fit(*train)
    evaluation = _one_evaluation(started, kernel.theta)

    saying("exact values")
    judge = Gpr(ours_fitted.kernel_, alpha=_ALPHA, optimizer=None).fit(*train)
    mean, deviation = judge.predict(test[0], return_std=True)
    ours = Contender(
        evaluation,
        fit,
        result.evaluations[n],
        result.reason != USED_UP,
        prediction,
        judge.log_marginal_likelihood_value_ / n,
        _rmse(predicted[0], test[1]),
    )

    saying("GaussianProcessRegressor")
    evaluation = _one_evaluation(judge, kernel.theta)
    stopped = _Stopped(patience)
    theirs_fitted = Gpr(kernel, alpha=_ALPHA, optimizer=stopped)
    fit, _ = _timed(lambda: _quietly(theirs_fitted, train))
    prediction, known = _timed(lambda: theirs_fitted.predict(test[0], return_std=True))
    theirs = Contender(
        evaluation,
        fit,
        stopped.evaluations,
        stopped.ended,
        prediction,
        theirs_fitted.log_marginal_likelihood_value_ / n,
        _rmse(known[0], test[1]),
    )
    off = float(np.abs(predicted[0] - mean).max()), float(np.abs(predicted[1] - deviation).max())
    return EstimatorCell(dataset.name, n, d, t, theirs, ours, *off)


def _quietly(estimator: Any, train: Arrays) -> None:
    """Both warn of hyperparameters on bounds, as those of inputs that say nothing are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(*train)


def _one_evaluation(estimator: Any, theta: NDArray[np.float64]) -> float:
    """The median of some."""
    seconds = [
        _timed(lambda: estimator.log_marginal_likelihood(theta, eval_gradient=True))[0] for _ in range(_EVALUATIONS)
    ]
    return float(np.median(seconds))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def _rmse(predicted: NDArray[np.float64], known: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((predicted - known) ** 2)))
