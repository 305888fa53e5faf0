"""Sums in which linear kernels come after others: GPyTorch would factorise what comes before, without noise."""

from __future__ import annotations

from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel, LinearKernel, PeriodicKernel, RBFKernel, ScaleKernel

from gp_rangeformer import Exact, collect_reports, settings
from tests.plugin.market import GP

N = 400
SUMS = {
    "rbf + linear": (
        lambda: ScaleKernel(RBFKernel()) + LinearKernel(),
        lambda: LinearKernel() + ScaleKernel(RBFKernel()),
    ),
    "season + scaled linear + rbf": (
        lambda: ScaleKernel(PeriodicKernel()) * RBFKernel() + ScaleKernel(LinearKernel()) + ScaleKernel(RBFKernel()),
        lambda: ScaleKernel(LinearKernel()) + ScaleKernel(PeriodicKernel()) * RBFKernel() + ScaleKernel(RBFKernel()),
    ),
}


def trained(kernel: Kernel, dtype: torch.dtype) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The likelihood, the norm of its gradient, and predictions."""
    x = torch.linspace(0, 12, N, dtype=dtype).unsqueeze(-1)
    y = (6.28 * x[:, 0]).sin() + 0.3 * x[:, 0]
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = GP(x, y, likelihood, gpytorch.means.ConstantMean(), kernel).to(dtype)
    loss: Any = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(x), y)
    loss.backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    model.eval()
    with torch.no_grad():
        found: Any = model(x[:7] + 0.01)
        return loss.item(), torch.stack(norms).norm(), torch.cat([found.mean, found.variance])


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_the_parts_does_not_matter(name: str, dtype: torch.dtype) -> None:
    after, before = SUMS[name]
    with settings.rangeformer(), settings.solver(Exact()), collect_reports() as reports:
        found, expected = trained(after(), dtype), trained(before(), dtype)
    assert reports[0].solver == "exact"
    rtol = 1e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


def test_roots_are_left_out_inside_an_evaluation_alone() -> None:
    x = torch.linspace(0, 1, 20).unsqueeze(-1)
    kernels: list[Any] = [ScaleKernel(RBFKernel()) + LinearKernel(), ScaleKernel(RBFKernel())]
    with settings.rangeformer():
        evaluated, alone = (kernel(x).evaluate_kernel() for kernel in kernels)
        asked = alone.add_jitter(0.1).add_low_rank(torch.ones(20, 1))
    names = [{key[0] for key in getattr(found, "_memoize_cache", {})} for found in (evaluated, asked)]
    assert "root_decomposition" not in names[0]
    assert "root_decomposition" in names[1]
