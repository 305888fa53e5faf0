"""A Gaussian process of few points: scikit-learn's kernels as they are, and LAPACK."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, get_lapack_funcs, solve_triangular
from sklearn.gaussian_process import kernels as sk

from gp_rangeformer.fit.trust_region import QuadraticModel
from gp_rangeformer.fit.wall import Wall
from gp_rangeformer.sklearn.flag import NOT_FINITE, not_definite
from gp_rangeformer.sklearn.negative_variances import not_negative
from gp_rangeformer.sklearn.supported import leaves, variances_of
from gp_rangeformer.sklearn.training import Training

Array = NDArray[np.float64]
_inverse: Any = get_lapack_funcs("potri", dtype=np.float64)


@dataclass(frozen=True)
class Evaluation:
    """log p(y) of all outputs together and its gradient with respect to theta. ``factor``: of A = K + noise;
    ``solution``: A^-1 y, n x q; ``derivatives``: of K, n x n x p."""

    value: float
    gradient: Array
    factor: Array
    solution: Array
    derivatives: Array


class FewPoints:
    """Everything in units of the targets in ``training``. O(n^3), and n^2 numbers for each hyperparameter."""

    def __init__(self, training: Training, kernel: sk.Kernel) -> None:
        self._x, self._noise, self._flat = training.x, training.noise, training.y.ndim == 1
        self._y = training.y.reshape(len(self._x), -1)
        self._kernel: Any = kernel
        self._factored: tuple[Array, Array] | None = None

    def move(self, theta: Array, known: Evaluation | None = None) -> None:
        """Set the hyperparameters of the kernel itself.

        :param known: an evaluation there.
        """
        values, at = np.exp(theta), 0
        for part, name, size in self._free:
            setattr(part, name, values[at] if size == 1 else values[at : at + size])
            at += size
        self._factored = None if known is None else (known.factor, known.solution)

    @functools.cached_property
    def _free(self) -> list[tuple[Any, str, int]]:
        """In the order of theta: whose a hyperparameter is, its name, and how many numbers it has."""
        return [
            (leaf, each.name, each.n_elements)
            for leaf in leaves(self._kernel)
            for each in leaf.hyperparameters
            if not each.fixed
        ]

    def evaluate(self) -> Evaluation:
        """:raises LinAlgError: A is not positive definite, or the result is not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            matrix, derivatives = self._kernel(self._x, eval_gradient=True)
            self._factored = factor, solution = self._solved(matrix)
            inverse = _inverse(factor, lower=1)[0]
            lower = np.tril(solution @ solution.T - solution.shape[1] * inverse)
            weights = lower + np.tril(lower, -1).T
            gradient = 0.5 * weights.reshape(-1) @ derivatives.reshape(weights.size, -1)
            value = self._value(factor, solution)
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            raise LinAlgError(NOT_FINITE)
        return Evaluation(value, gradient, factor, solution, derivatives)

    def log_likelihood(self) -> float:
        """:raises LinAlgError: as :meth:`evaluate`."""
        return self._value(*self._factorisation())

    def log_likelihood_and_gradient(self) -> tuple[float, Array]:
        """:raises LinAlgError: as :meth:`evaluate`."""
        found = self.evaluate()
        return found.value, found.gradient

    def quadratic_model(self, at: Evaluation, free: NDArray[np.bool_]) -> QuadraticModel:
        """By average information (:mod:`gp_rangeformer.fit.information`), in nats per point, of the hyperparameters
        ``free``."""
        n = len(self._x)
        columns = np.einsum("ijk,jq->iqk", at.derivatives[..., free], at.solution)
        halves = solve_triangular(at.factor, columns.reshape(n, -1), lower=True, check_finite=False)
        halves = halves.reshape(-1, columns.shape[-1])
        curvature = 0.5 * halves.T @ halves / n
        return QuadraticModel(torch.from_numpy(at.gradient[free] / n), torch.from_numpy(curvature))

    def resolved(self) -> bool:
        """Whether noise is larger than what rounding of K amounts to (:mod:`gp_rangeformer.fit.wall`)."""
        white = variances_of(self._kernel).white or 0.0
        largest, noise = np.max(self._kernel.diag(self._x)) - white, np.min(self._noise) + white
        return bool(largest <= noise * math.exp(Wall.of(len(self._x), torch.float64).height))

    def predict(self, x: Array, variance: bool, covariance: bool) -> tuple[Array, Array | None]:
        """As :meth:`gp_rangeformer.sklearn.posterior.Posterior.predict`."""
        factor, solution = self._factorisation()
        across = self._kernel(x, self._x)
        mean = across @ solution
        if self._flat:
            mean = mean[:, 0]
        if not (variance or covariance):
            return mean, None
        halves = solve_triangular(factor, across.T, lower=True, check_finite=False)
        if covariance:
            return mean, self._kernel(x) - halves.T @ halves
        prior = self._kernel.diag(x)
        return mean, not_negative(prior - np.einsum("ij,ij->j", halves, halves), prior)

    def _factorisation(self) -> tuple[Array, Array]:
        if self._factored is None:
            self._factored = self._solved(self._kernel(self._x))
        return self._factored

    def _solved(self, matrix: Array) -> tuple[Array, Array]:
        matrix.flat[:: len(matrix) + 1] += self._noise
        try:
            factor = cholesky(matrix, lower=True, check_finite=False)
        except LinAlgError as error:
            raise not_definite(error) from error
        return factor, cho_solve((factor, True), self._y, check_finite=False)

    def _value(self, factor: Array, solution: Array) -> float:
        n, outputs = self._y.shape
        halved = float(np.log(factor.diagonal()).sum()) + 0.5 * n * math.log(2 * math.pi)
        return -0.5 * float(np.vdot(self._y, solution)) - outputs * halved
