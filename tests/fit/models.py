"""Small models with known answers, and their likelihoods by plain formulas."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood, Likelihood
from gpytorch.means import ConstantMean, Mean
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

DIMENSIONS = 3


class Model(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor | None, y: Tensor | None, likelihood: Any, mean: Mean, kernel: Kernel) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = mean, kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        mean: Any = self.mean_module(x)
        return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))


def data(n: int, seed: int = 0, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, DIMENSIONS, generator=generator, dtype=torch.float64)
    y = (6 * x[:, 0]).sin() + x[:, 1].square() + 2.0
    return x, y + noise * torch.randn(n, generator=generator, dtype=torch.float64)


def matern() -> Any:
    return ScaleKernel(MaternKernel(1.5, ard_num_dims=DIMENSIONS))


def build(
    n: int,
    *,
    kernel: Kernel | None = None,
    mean: Mean | None = None,
    likelihood: Likelihood | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Any:
    x, y = data(n, seed)
    likelihood = likelihood or GaussianLikelihood()
    model = Model(x, y, likelihood, mean or ConstantMean(), kernel or matern())
    mll = ExactMarginalLogLikelihood(likelihood, model).to(dtype)
    model.set_train_data(x.to(dtype), y.to(dtype), strict=False)
    return mll


def value(mll: Any) -> float:
    """By GPyTorch and a factorisation, in the model's dtype."""
    mll.train()
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10_000):
        model = mll.model
        return float(mll(model(*model.train_inputs), model.train_targets, *model.train_inputs))


def by_lbfgs(mll: Any, most: int = 200) -> float:
    """Where GPyTorch and L-BFGS end, from the same start."""
    mll.train()
    optimiser = torch.optim.LBFGS(
        mll.parameters(), max_iter=most, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -mll(mll.model(*mll.model.train_inputs), mll.model.train_targets, *mll.model.train_inputs)
        loss.backward()
        return loss

    with gpytorch.settings.max_cholesky_size(10_000):
        optimiser.step(closure)  # type: ignore[arg-type]
    return value(mll)
