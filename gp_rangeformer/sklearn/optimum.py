"""Where the likelihood of a kernel is highest, from one start or several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from gp_rangeformer.fit import FitError, FitResult, fit_mll
from gp_rangeformer.sklearn.flag import flag, likelihoods, not_definite
from gp_rangeformer.sklearn.posterior import Posterior, Training
from gp_rangeformer.sklearn.translation import Translated, translate

TOLERANCE = 1e-6  # nats per point: where a factorisation answers, a fit ends as near to the optimum as L-BFGS does
_END_OF_DTYPE = "ends here"  # what a fit notes that came to where rounding is as large as the noise
# Of a logarithm: nearer to a bound than this, the bound itself is tried.
_NEAR = 0.1


def maximise(training: Training, kernel: Translated) -> FitResult:
    """Fit the parameters of ``kernel`` in place.

    :raises numpy.linalg.LinAlgError: the start cannot be evaluated.
    """
    mll = training.likelihood(kernel)
    with flag(training.solver), likelihoods():
        try:
            result = fit_mll(mll, tolerance=TOLERANCE)
        except FitError as error:
            if isinstance(error.__cause__, NotPSDError | NanError | None):
                raise not_definite(error) from error
            raise
    if not result.settled or any(_END_OF_DTYPE in note for note in result.notes):
        warnings.warn(f"the fit did not converge: {result.summary()}", ConvergenceWarning, stacklevel=2)
    return result


def best_theta(
    training: Training, kernel: Any, starts: Iterable[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], float, FitResult]:
    """Of fits of a scikit-learn kernel from several thetas: the best theta within its bounds, the likelihood there, and
    the result of its fit. Starts that cannot be evaluated are left out.

    :raises numpy.linalg.LinAlgError: none of them can be.
    """
    found: list[tuple[FitResult, NDArray[np.float64]]] = []
    failure: np.linalg.LinAlgError | None = None
    for start in starts:
        translated = translate(kernel.clone_with_theta(start), training.x.shape[1], fit=True)
        try:
            result = maximise(training, translated)
        except np.linalg.LinAlgError as error:
            failure = error
            continue
        found.append((result, translated.theta()))
    if not found:
        assert failure is not None
        raise failure
    result, theta = max(found, key=lambda each: each[0].value)
    lower, upper = kernel.bounds.T
    theta = theta.clip(lower, upper)
    value = log_likelihood(training, kernel, theta)
    for index in range(len(theta)):
        for bound in (lower[index], upper[index]):
            if 0 < abs(theta[index] - bound) < _NEAR:
                moved = theta.copy()
                moved[index] = bound
                if (there := log_likelihood(training, kernel, moved)) >= value:
                    theta, value = moved, there
    return theta, value, result


def log_likelihood(training: Training, kernel: Any, theta: NDArray[np.float64]) -> float:
    """At ``theta``; -infinity where the matrix is not positive definite."""
    translated = translate(kernel.clone_with_theta(theta), training.x.shape[1], fit=False)
    try:
        return Posterior(training, translated).log_likelihood()
    except np.linalg.LinAlgError:
        return -math.inf


def warn_at_bounds(kernel: Any) -> None:
    """One warning that names the hyperparameters of a scikit-learn kernel that ended on a bound."""
    ended = []
    theta, bounds = iter(kernel.theta), iter(kernel.bounds)
    for hyperparameter in kernel.hyperparameters:
        for index in range(0 if hyperparameter.fixed else hyperparameter.n_elements):
            value, limits = next(theta), next(bounds)
            name = hyperparameter.name + (f"[{index}]" if hyperparameter.n_elements > 1 else "")
            ended += [f"{name} at {np.exp(limit):.3g}" for limit in limits if np.isclose(value, limit)]
    if ended:
        warnings.warn(
            f"hyperparameters ended on a bound, beyond which a better value may be: {', '.join(ended)}",
            ConvergenceWarning,
            stacklevel=2,
        )
