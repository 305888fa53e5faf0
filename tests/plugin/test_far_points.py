"""A point far out leaves the predictions of all others as they are."""

from __future__ import annotations

import gpytorch
import pytest
import torch

from gp_rangeformer import settings
from gp_rangeformer.plugin.crossover import Reach
from tests.plugin.market import build, data


@pytest.mark.parametrize("before", [False, True], ids=["first", "after_others"])
@pytest.mark.parametrize("far", [1e5, 1e9, 1e30])
@pytest.mark.parametrize("n", [100, 300])
def test_predictions_beside_a_point_far_out_are_those_without_it(n: int, far: float, before: bool) -> None:
    """Few points in float64 are the host's, whose distances are differences about the mean of what is asked for."""
    model, x = build("ard", n=n).model.eval(), data(n, m=9)[2]
    odd = torch.cat([x, torch.full_like(x[:1], far)])
    with settings.rangeformer(), torch.no_grad():
        if before:
            assert model(x).mean.isfinite().all()
        found = model(odd)
        mean, variance = found.mean, found.variance
    with torch.no_grad():
        model.train()
        expected = model.eval()(x)
    torch.testing.assert_close(mean[:-1], expected.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(variance[:-1], expected.variance, rtol=1e-6, atol=1e-8)
    assert bool(variance[-1].isfinite())


def test_reach_is_measured_in_the_shortest_length_scale() -> None:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))
    kernel.base_kernel.lengthscale = torch.tensor([10.0, 0.1])
    points = torch.zeros(3, 2)
    reach = Reach.of(kernel, points)
    assert not reach.exceeded(points + 29)
    assert reach.exceeded(points + 31)
    assert Reach.of(kernel, torch.tensor([[0.0, 0.0], [31.0, 0.0]])).exceeded(points + 1)
    assert not Reach.of(gpytorch.kernels.LinearKernel(), points).exceeded(points + 1e9)
    kernel.base_kernel.lengthscale = torch.tensor([10.0, 0.2])
    assert not reach.describes(kernel)
