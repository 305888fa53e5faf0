"""Priors that are flat, that end, that are of what stays fixed, and what a result says with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, UniformPrior

from gp_rangeformer import settings
from gp_rangeformer.fit import fit_mll
from tests.fit.models import Model, build, by_lbfgs, data, value


def of_noise(low: float, high: float, inside: bool = True) -> Any:
    """Flat between two ends; a constraint keeps the noise between them, or nothing does."""
    bounds: Any = {"noise_constraint": Interval(low, high)} if inside else {}
    mll = build(80, likelihood=GaussianLikelihood(noise_prior=UniformPrior(low, high), **bounds))
    mll.likelihood.noise = 0.7 * low + 0.3 * high
    return mll


def of_a_fixed_scale() -> Any:
    mll = build(80)
    mll.model.covar_module.register_prior("outputscale_prior", GammaPrior(2.0, 0.15), "outputscale")
    mll.model.covar_module.raw_outputscale.requires_grad_(False)
    return mll


@pytest.mark.parametrize("make", [lambda: of_noise(1e-4, 1.0), of_a_fixed_scale], ids=["flat", "of a fixed scale"])
def test_one_whose_density_no_parameter_moves_has_no_curvature(make: Any) -> None:
    best = by_lbfgs(make(), 40)
    mll = make()
    found = fit_mll(mll)
    assert found.converged, found.summary()
    assert found.value == pytest.approx(value(mll), abs=1e-9)
    assert found.value > best - 1e-3


def test_a_step_beyond_its_support_is_shortened() -> None:
    """Where the likelihood rises towards the end of it, and across."""
    mll = of_noise(0.2, 1.0, inside=False)
    before = value(mll)
    found = fit_mll(mll)
    assert "evaluations failed" in found.summary()
    assert found.value == pytest.approx(value(mll), abs=1e-9)
    assert found.value > before
    assert mll.likelihood.noise.item() == pytest.approx(0.2, abs=0.01)


def test_a_start_beyond_it_is_the_callers_error() -> None:
    mll = of_noise(0.2, 1.0, inside=False)
    with torch.no_grad():
        mll.likelihood.raw_noise.fill_(2.0)
    with pytest.raises(ValueError, match="support"):
        fit_mll(mll)
    assert mll.likelihood.raw_noise.item() == 2.0


def with_priors(n: int) -> Any:
    mll = build(n)
    mll.model.covar_module.register_prior("outputscale_prior", GammaPrior(2.0, 0.15), "outputscale")
    return mll


def of_two_outputs(n: int) -> Any:
    """With a prior that GPyTorch counts for each."""
    batch = torch.Size([2])
    x, y = data(n)
    likelihood = GaussianLikelihood(batch_shape=batch, noise_prior=GammaPrior(1.1, 0.05))
    kernel = ScaleKernel(RBFKernel(lengthscale_prior=GammaPrior(3.0, 6.0)), batch_shape=batch)
    model = Model(x.expand(2, -1, -1), torch.stack([y, 1 - y]), likelihood, ZeroMean(batch_shape=batch), kernel)
    return ExactMarginalLogLikelihood(likelihood, model).double()


@pytest.mark.parametrize("make", [with_priors, of_two_outputs])
@pytest.mark.parametrize("flag", [False, True])
def test_the_certain_interval_is_of_the_value_with_them(make: Any, flag: bool) -> None:
    mll = make(60)
    with settings.rangeformer(flag):
        found = fit_mll(mll, max_evaluations=3)
    assert found.certain is not None
    # To rounding of the sum: the interval of an exact value is hardly wider.
    assert found.certain.lower - 1e-12 <= found.value <= found.certain.upper + 1e-12
    assert found.certain.width < 1e-6
