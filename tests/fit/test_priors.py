"""Priors that are flat, that end, or that are of what stays fixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import GammaPrior, UniformPrior

from gp_rangeformer.fit import fit_mll
from tests.fit.models import build, by_lbfgs, value


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
