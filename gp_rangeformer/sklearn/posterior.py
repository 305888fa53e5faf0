"""A Gaussian process with given hyperparameters and training points: its likelihood and its predictions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.sklearn.flag import flag, likelihoods
from gp_rangeformer.sklearn.model import Model, likelihood_of
from gp_rangeformer.sklearn.translation import KernelError, Translated, evaluate
from gp_rangeformer.solvers.exact import Exact

_ROUNDING = 1e-6  # of a prior variance
# Points up to which a likelihood that was asked for by itself is exact: predictions factorise up to there, too.
_FACTORISED = 4000


@dataclass(frozen=True)
class Training:
    """``x``: n x d; ``y``: n, or q x n for several outputs; ``noise``: given variances, n; ``solver``: of
    ``settings.solver``, None for the one that is set."""

    x: Tensor
    y: Tensor
    noise: Tensor
    solver: Any = None

    def likelihood(self, kernel: Translated) -> Any:
        """An ``ExactMarginalLogLikelihood`` whose parameters are those of ``kernel``.

        :raises KernelError: a kernel of nothing but noise.
        """
        if kernel.covariance is None:
            raise KernelError("the kernel is nothing but WhiteKernel: add a kernel of the points")
        return likelihood_of(self.x, self.y, kernel.covariance, self.noise, kernel.white)


class Posterior:
    """Everything in units of the targets in ``training``."""

    def __init__(self, training: Training, kernel: Translated) -> None:
        self._training, self._kernel = training, kernel
        self._mll = training.likelihood(kernel)
        # GPyTorch's predictions know one output; the covariance is that of the first.
        outputs = training.y.unbind() if training.y.dim() > 1 else ()
        models = [Model(training.x, y, self._mll.model.covariance, self._mll.likelihood) for y in outputs]
        self._models = models or [self._mll.model]

    @property
    def white(self) -> float:
        """The variance of the kernel's white noise."""
        return float(evaluate(self._kernel.white).detach())

    def log_likelihood(self) -> float:
        """log p(y) of all outputs together: exact up to 4,000 points where no solver was chosen, beyond as the solver
        estimates it.

        :raises numpy.linalg.LinAlgError: as :func:`~gp_rangeformer.sklearn.flag.flag`.
        """
        with torch.no_grad():
            return float(self._log_likelihood())

    def log_likelihood_and_gradient(self) -> tuple[float, NDArray[np.float64]]:
        """And its gradient with respect to theta, of a kernel that was translated without ``fit``."""
        with torch.enable_grad():
            value = self._log_likelihood()
            if value.requires_grad:
                value.backward()
        return float(value.detach()), self._kernel.theta_gradient()

    def _log_likelihood(self) -> Tensor:
        model, y, solver = self._mll.model, self._training.y, self._training.solver
        if solver is None and y.shape[-1] <= _FACTORISED:
            solver = Exact()
        with flag(solver), likelihoods():
            model.train()
            return self._mll.likelihood(model(self._training.x)).log_prob(y).sum()

    def predict(self, x: Tensor, variance: bool, covariance: bool) -> tuple[Tensor, Tensor | None]:
        """Means, t or q x t; and variances, t, or covariances, t x t, of observations without the given noise.

        :raises numpy.linalg.LinAlgError: as :func:`~gp_rangeformer.sklearn.flag.flag`.
        """
        with flag(self._training.solver), torch.no_grad():
            found: list[Any] = [model.eval()(x) for model in self._models]
            mean = torch.stack([each.mean for each in found]) if self._training.y.dim() > 1 else found[0].mean
            second, white = None, evaluate(self._kernel.white).to(mean)
            if covariance:
                second = found[0].lazy_covariance_matrix.to_dense() + white * torch.eye(len(x)).to(mean)
            elif variance:
                second = self._not_negative(found[0].lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2), x) + white
        return mean, second

    def _not_negative(self, variance: Tensor, x: Tensor) -> Tensor:
        """What rounding has made negative is 0."""
        prior: Any = self._mll.model.covariance(x, diag=True)
        if bool((variance < -_ROUNDING * prior).any()):
            warnings.warn(
                f"predicted variances as low as {float(variance.min()):.1e} became 0: the matrix is nearly singular, "
                "and a larger alpha makes predictions reliable",
                stacklevel=2,
            )
        return variance.clamp_min(0)
