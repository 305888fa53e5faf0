"""A model that is changed in place while it predicts is predicted with as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import LinearMean
from torch import Tensor

from gp_rangeformer import settings
from tests.fit.models import DIMENSIONS, Model, data

N = 200


class Deep(Model):
    """Reads what a small network makes of x."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.network = torch.nn.Linear(DIMENSIONS, 2)

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return super().forward(self.network(x).tanh())


def build() -> Any:
    torch.manual_seed(0)
    x, y = data(N)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    linear, kernel = LinearMean(2), ScaleKernel(RBFKernel(ard_num_dims=2))
    return Deep(x, y, likelihood, linear, kernel).double().eval()


def load(model: Any) -> None:
    state = {name: 1.3 * value for name, value in copy.deepcopy(model.state_dict()).items()}
    model.load_state_dict(state)


def another_likelihood(model: Any) -> None:
    model.likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model.likelihood.initialize(noise=0.03)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "mean": lambda model: model.mean_module.initialize(weights=torch.full((2, 1), 1.5)),
    "network": lambda model: model.network.weight.data.mul_(1.5),
    "state_dict": load,
    "likelihood": another_likelihood,
    "nothing": lambda model: None,
}


@pytest.mark.usefixtures("predicts_small_systems")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_predictions_after_a_change_are_those_of_a_model_that_was_made_so(change: str, graph: bool) -> None:
    x = data(7, seed=5)[0]
    model = build()
    with settings.rangeformer(), gpytorch.settings.max_eager_kernel_size(0), torch.set_grad_enabled(graph):
        assert (model(x).variance >= 0).all()
        CHANGES[change](model)
        found = model(x)
        mean, covariance = found.mean, found.covariance_matrix
    fresh = build()
    CHANGES[change](fresh)
    with torch.no_grad():
        expected = fresh(x)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance, expected.covariance_matrix, rtol=1e-7, atol=1e-9)
