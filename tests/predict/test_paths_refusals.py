"""Models, arguments and points of which no paths are drawn: an error that names the cause and what to do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import LinearKernel, RBFKernel
from torch import Tensor

from gp_rangeformer.predict import SamplePaths, sample_paths
from tests.fit.models import Model, build, data


def no_data() -> Any:
    return Model(None, None, gpytorch.likelihoods.GaussianLikelihood(), gpytorch.means.ZeroMean(), RBFKernel())


def with_data(x: Tensor, y: Tensor, kernel: Any = None) -> Any:
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    return Model(x, y, likelihood, gpytorch.means.ZeroMean(), kernel or RBFKernel()).double()


class OfCovariances(Model):
    def forward(self, x: Tensor) -> Any:
        mean: Any = self.mean_module(x)
        return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x) + self.covar_module(x))


def of_covariances() -> Any:
    return OfCovariances(*data(20), gpytorch.likelihoods.GaussianLikelihood(), gpytorch.means.ZeroMean(), RBFKernel())


def not_to_be_copied() -> Any:
    model = build(20).model
    model.kept = model.covar_module.outputscale * 2
    return model


X, Y = data(20)
NAN = torch.full((20,), math.nan, dtype=torch.float64)
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "no exact GP": (lambda: torch.nn.Linear(2, 2), "needs a gpytorch.models.ExactGP, got Linear"),
    "no data": (no_data, "set_train_data"),
    "a batch": (lambda: with_data(X.expand(2, 20, 3), Y.expand(2, 20)), r"\(2, 20, 3\).*take a model of n x d"),
    "several inputs": (lambda: _two_inputs(), "2 training inputs: join them"),
    "NaN targets": (lambda: with_data(X, NAN), "targets hold NaN"),
    "NaN inputs": (lambda: with_data(torch.where(X > 0.9, math.nan, X), Y), "inputs hold NaN"),
    "two dtypes": (lambda: _of_two_dtypes(), "float32, targets torch.float64: make both"),
    "another kernel": (lambda: with_data(X, Y, LinearKernel()), "this LinearKernel.*Covered are RBF, Matern"),
    "inside another": (lambda: with_data(X, Y, LinearKernel() * RBFKernel()), "this ProductKernel.*Covered are"),
    "covariances": (of_covariances, "forward computes with covariances.*combine the kernels"),
    "a graph": (not_to_be_copied, "cannot be copied.*keep tensors with a graph out"),
    "a matrix of noise": (lambda: _correlated_noise(), "adds no independent noise"),
}


def _two_inputs() -> Any:
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    return Model((X, X), Y, likelihood, gpytorch.means.ZeroMean(), RBFKernel())  # type: ignore[arg-type]


def _of_two_dtypes() -> Any:
    model = with_data(X, Y)
    model.set_train_data(X.float(), Y, strict=False)
    return model


class _Correlated(gpytorch.likelihoods.GaussianLikelihood):
    def marginal(self, function_dist: Any, *params: Any, **options: Any) -> Any:
        found = function_dist.lazy_covariance_matrix
        return gpytorch.distributions.MultivariateNormal(function_dist.mean, found + found)


def _correlated_noise() -> Any:
    return Model(X, Y, _Correlated(), gpytorch.means.ZeroMean(), RBFKernel()).double()


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(name: str) -> None:
    make, message = MODELS[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sample_paths(make(), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be an integer of at least 1, got 0"),
        ({"count": True}, "count must be an integer"),
        ({"count": 2, "features": 1}, "features must be an integer of at least 2"),
        ({"count": 2, "seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_paths(build(20).model, **options)


@functools.cache
def two_paths() -> SamplePaths:
    return sample_paths(build(20).model, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, dtype=torch.float64), r"shape \(3,\).*unsqueeze"),
        (torch.zeros(3, 2, dtype=torch.float64), "x has 2 columns, the training inputs 3"),
        (torch.zeros(3, 3), "x is torch.float32 on cpu, the model torch.float64.*x.to"),
        (torch.full((3, 3), math.nan, dtype=torch.float64), "x holds NaN"),
    ],
)
def test_points_that_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_paths()(x)
