"""Models whose copies share parts with them are fitted on all points, and stay what they are."""

from __future__ import annotations

import pytest
import torch
from gpytorch.kernels import InducingPointKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood

from gp_rangeformer.fit import fit_mll
from gp_rangeformer.fit.subsets import thinned
from tests.fit.models import DIMENSIONS, build


def test_a_copy_that_shares_the_likelihood_is_not_used() -> None:
    """GPyTorch's inducing points give theirs away: in float64 it would be the model's own."""
    likelihood, inducing = GaussianLikelihood(), torch.rand(5, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    mll = build(
        1000,
        kernel=InducingPointKernel(ScaleKernel(RBFKernel()), inducing, likelihood),
        likelihood=likelihood,
        dtype=torch.float32,
    )
    with pytest.raises(TypeError, match="of the original"):
        thinned(mll, torch.arange(50))
    found = fit_mll(mll, max_evaluations=2)
    assert "cannot be copied (TypeError)" in found.summary()
    assert set(found.evaluations) == {1000}
    assert {parameter.dtype for parameter in mll.parameters()} == {torch.float32}


def test_a_buffer_that_is_the_input_does_not_count_as_shared() -> None:
    mll = build(60)
    mll.model.register_buffer("points", mll.model.train_inputs[0])
    assert len(thinned(mll, torch.arange(20)).model.train_targets) == 20
    assert len(mll.model.points) == 60
