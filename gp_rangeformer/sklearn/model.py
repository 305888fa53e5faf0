"""The GPyTorch model behind the estimator: no mean, given noise, and white noise that belongs to the kernel."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods.gaussian_likelihood import _GaussianLikelihoodBase
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from gp_rangeformer.sklearn.translation import Polynomial, evaluate


class Noise(FixedGaussianNoise):
    """Given variances, n, and a variance more that is a function of parameters."""

    def __init__(self, given: Tensor, white: Polynomial) -> None:
        gpytorch.Module.__init__(self)  # not the host's own, which raises what is below 1e-6
        self.noise = given
        self.white = white
        # Kernels too, of which it has a scale: what only noise depends on is fitted with the rest.
        self.levels = torch.nn.ModuleList({id(module): module for numbers in white for module, _ in numbers}.values())

    def forward(self, *params: Any, **kwargs: Any) -> DiagLinearOperator:
        return DiagLinearOperator(self.noise + evaluate(self.white).to(self.noise))


class Likelihood(_GaussianLikelihoodBase):
    """Of the training points, whose noise is known."""

    def __init__(self, given: Tensor, white: Polynomial) -> None:
        super().__init__(Noise(given, white))


class Model(gpytorch.models.ExactGP):
    """An exact GP of mean zero.

    :param x: n x d.
    :param y: n, or q x n for outputs that share everything.
    """

    def __init__(self, x: Tensor, y: Tensor, covariance: Kernel, likelihood: Any) -> None:
        super().__init__(x, y, likelihood)
        self.covariance = covariance

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covariance(x))  # type: ignore[arg-type]


def likelihood_of(x: Tensor, y: Tensor, covariance: Kernel, given: Tensor, white: Polynomial) -> Any:
    """An ``ExactMarginalLogLikelihood`` in the dtype and on the device of ``x``."""
    model = Model(x, y, covariance, Likelihood(given, white)).to(x)
    return ExactMarginalLogLikelihood(model.likelihood, model)
