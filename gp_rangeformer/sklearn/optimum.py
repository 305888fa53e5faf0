"""Where the likelihood of a kernel is highest, from one start or several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from gp_rangeformer.fit import FitError, FitResult, fit_mll
from gp_rangeformer.sklearn.bounded import METHOD, maximise_between_bounds
from gp_rangeformer.sklearn.few_points import FewPoints
from gp_rangeformer.sklearn.flag import NOT_FINITE, flag, likelihoods, not_definite
from gp_rangeformer.sklearn.posterior import Posterior
from gp_rangeformer.sklearn.training import Training
from gp_rangeformer.sklearn.translation import Translated, translate

TOLERANCE = 1e-6  # nats per point: where a factorisation answers, a fit ends as near to the optimum as L-BFGS does
_END_OF_DTYPE = "ends here"  # what a fit notes that came to where rounding is as large as the noise
# Of a logarithm: nearer to a bound than this, the bound itself is tried.
_NEAR = 0.1


def maximise(training: Training, kernel: Translated) -> FitResult:
    """Fit the parameters of ``kernel`` in place.

    :raises numpy.linalg.LinAlgError: the start cannot be evaluated.
    """
    mll = Posterior(training, kernel).mll
    with flag(training.solver), likelihoods():
        try:
            result = fit_mll(mll, tolerance=TOLERANCE)
        except FitError as error:
            if isinstance(error.__cause__, NotPSDError | NanError):
                raise not_definite(error) from error
            if isinstance(error.__cause__, torch.linalg.LinAlgError | None):
                raise np.linalg.LinAlgError(f"{NOT_FINITE} ({error})") from error
            raise
    if not result.settled or any(_END_OF_DTYPE in note for note in result.notes):
        warnings.warn(f"the fit did not converge: {result.summary()}", ConvergenceWarning, stacklevel=2)
    return result


Array = NDArray[np.float64]


class Optimum(NamedTuple):
    """``value``: log p(y) at ``theta``; ``points``: those of the fit, there, if it was one of few."""

    theta: Array
    value: float
    result: FitResult
    points: FewPoints | None = None


def best_theta(training: Training, kernel: Any, starts: Iterable[Array], bounds: Array) -> Optimum:
    """Of fits of a scikit-learn kernel from several thetas: the best theta within its bounds (p x 2). Starts that
    cannot be evaluated are left out.

    :raises numpy.linalg.LinAlgError: none of them can be.
    """
    found: list[Optimum] = []
    failure: np.linalg.LinAlgError | None = None
    for start in starts:
        try:
            found.append(_from_start(training, kernel.clone_with_theta(start), start, bounds))
        except np.linalg.LinAlgError as error:
            failure = error
    if not found:
        assert failure is not None
        raise failure
    return max(found, key=lambda each: each.value)


def _from_start(training: Training, kernel: Any, start: Array, bounds: Array) -> Optimum:
    """Of a kernel that may be changed."""
    notes: tuple[str, ...] = ()
    if training.few(len(start)):
        points = FewPoints(training, kernel)
        theta, value, result = maximise_between_bounds(points, len(training.x), start, bounds, TOLERANCE)
        if points.resolved():
            if result.settled:
                return Optimum(theta, value, result, points)
            start, notes = theta, (f"began where {METHOD} ended: {result.reason}",)
    translated = translate(kernel.clone_with_theta(start), training.x.shape[1], fit=True)
    result = maximise(training, translated)
    theta, value = _between_bounds(training, kernel, translated.theta(), bounds)
    return Optimum(theta, value, replace(result, notes=(*notes, *result.notes)))


def _between_bounds(training: Training, kernel: Any, theta: Array, bounds: Array) -> tuple[Array, float]:
    """The best of a theta that is near bounds and of those on them, and log p(y) there."""
    lower, upper = bounds.T
    theta = theta.clip(lower, upper)
    value = log_likelihood(training, kernel, theta)
    for index in range(len(theta)):
        for bound in (lower[index], upper[index]):
            if 0 < abs(theta[index] - bound) < _NEAR:
                moved = theta.copy()
                moved[index] = bound
                if (there := log_likelihood(training, kernel, moved)) >= value:
                    theta, value = moved, there
    return theta, value


def posterior_of(training: Training, kernel: Any) -> FewPoints | Posterior:
    """Of a scikit-learn kernel as it is."""
    if training.few(kernel.n_dims):
        return FewPoints(training, kernel)
    return Posterior(training, translate(kernel, training.x.shape[1], fit=False))


def log_likelihood(training: Training, kernel: Any, theta: Array) -> float:
    """At ``theta``; -infinity where the matrix is not positive definite."""
    try:
        return posterior_of(training, kernel.clone_with_theta(theta)).log_likelihood()
    except np.linalg.LinAlgError:
        return -math.inf


def log_likelihood_and_gradient(training: Training, kernel: Any, theta: Array) -> tuple[float, Array]:
    """At ``theta``; -infinity and zeros where the matrix is not positive definite."""
    try:
        return posterior_of(training, kernel.clone_with_theta(theta)).log_likelihood_and_gradient()
    except np.linalg.LinAlgError:
        return -math.inf, np.zeros_like(theta)


def warn_at_bounds(kernel: Any, theta: Array, bounds: Array) -> None:
    """One warning that names the hyperparameters of a scikit-learn kernel that ended on a bound."""
    on = np.isclose(theta[:, np.newaxis], bounds)
    if not on.any():
        return
    names = [
        hyperparameter.name + (f"[{index}]" if hyperparameter.n_elements > 1 else "")
        for hyperparameter in kernel.hyperparameters
        if not hyperparameter.fixed
        for index in range(hyperparameter.n_elements)
    ]
    ended = [f"{names[at]} at {np.exp(bounds[at, side]):.3g}" for at, side in np.argwhere(on)]
    warnings.warn(
        f"hyperparameters ended on a bound, beyond which a better value may be: {', '.join(ended)}",
        ConvergenceWarning,
        stacklevel=2,
    )
