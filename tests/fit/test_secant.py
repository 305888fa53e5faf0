"""Curvature that gradients alone have shown, where they begin steep and end small."""

from __future__ import annotations

from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood

from gp_rangeformer.fit import fit_mll
from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.secant import Secant
from tests.fit.models import Model, build, data


def outputs(n: int, scales: tuple[float, ...]) -> Any:
    """One model in a batch for each scale of the targets."""
    x, y = data(n)
    batch = torch.Size([len(scales)])
    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=batch)
    kernel = ScaleKernel(MaternKernel(1.5, batch_shape=batch), batch_shape=batch)
    targets = torch.stack([scale * (y - y.mean()) for scale in scales])
    mean = gpytorch.means.ConstantMean(batch_shape=batch)
    model = Model(x.expand(len(scales), -1, -1), targets, likelihood, mean, kernel)
    return ExactMarginalLogLikelihood(likelihood, model).double()


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_outputs_of_different_scales_converge_as_each_does_alone(scale: float) -> None:
    """The curvature of the larger one's start is not that of the smaller one."""
    alone = []
    for one in (1.0, scale):
        mll = build(60, kernel=ScaleKernel(MaternKernel(1.5)))
        y = mll.model.train_targets
        mll.model.set_train_data(targets=one * (y - y.mean()), strict=False)
        alone.append(fit_mll(mll).value)
    found = fit_mll(outputs(60, (1.0, scale)))
    assert found.method == "secants"
    assert found.converged, found.summary()
    assert found.value == pytest.approx(sum(alone), abs=2e-3)
    assert len(found.history) < 60


def at(*gradient: float) -> Evaluated:
    numbers = torch.tensor(gradient, dtype=torch.float64)
    return Evaluated(torch.zeros_like(numbers), 0.0, 0.0, numbers, None)


def test_what_a_steep_gradient_has_taught_is_forgotten_with_it() -> None:
    secant = Secant()
    assert torch.equal(secant.first(at(0.3, 0.4)).curvature, 0.5 * torch.eye(2, dtype=torch.float64))
    assert secant.first(at(-1e8, 0.1)).curvature.diagonal().tolist() == [1e8, 1.0]
    steep, less, small = at(-1e8, 0.1), at(-5e7, 0.1), at(0.3, 0.4)
    less.phi[0] = small.phi[0] = -1.0
    learned = secant.learn(steep, less, less)
    assert learned.curvature[0, 0] == pytest.approx(5e7, rel=1e-6)
    assert secant.learn(less, small, less).curvature[0, 0] > 1e6  # rejected: where it is, it is steep
    assert torch.equal(secant.learn(steep, small, small).curvature, 0.5 * torch.eye(2, dtype=torch.float64))
