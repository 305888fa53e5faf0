"""Kernels by name, and what their length-scales say of inputs."""

from __future__ import annotations

import math

import pytest
import torch
from gpytorch.kernels import (
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    RBFKernel,
    ScaleKernel,
)

from gp_rangeformer.regression import KernelError
from gp_rangeformer.regression.choice import AUTO, kernel_names
from gp_rangeformer.regression.kernels import PARTS, DecayingPeriodicKernel, build, covariance, hyperparameters
from gp_rangeformer.regression.relevance import inverse_squares

X = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def dense(kernel: Kernel) -> torch.Tensor:
    return kernel.double()(X).to_dense()


@pytest.mark.parametrize("names", ["linear+rbf", "matern32 + periodic + rq"])
def test_a_sum_is_the_sum_of_its_parts(names):
    parts = [covariance(name.strip(), 3).kernel for name in names.split("+")]
    torch.testing.assert_close(dense(covariance(names, 3).kernel), sum(dense(part) for part in parts))


@pytest.mark.parametrize("name", PARTS)
def test_every_name_has_a_length_scale_for_every_input(name):
    numbers = hyperparameters(build(X, X[:, 0], covariance(name, 3)), ("a", "b", "c"))
    assert {"noise", "mean"} < set(numbers)
    assert name == "linear" or {"lengthscale[a]", "lengthscale[c]", "outputscale"} < set(numbers)


def test_parts_are_named_in_the_hyperparameters():
    numbers = hyperparameters(build(X, X[:, 0], covariance("linear+rbf", 3)))
    assert {"linear.variance", "rbf.outputscale", "rbf.lengthscale[0]"} < set(numbers)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("matern", "no kernel 'matern'; kernels: matern32"),
        ("rbf,", "no kernel ''"),
        ("rbf+", "no kernel 'rbf"),
        ("rbf+rbf", "has 'rbf' twice"),
        ("rbf,rbf", "'rbf' is named twice"),
    ],
)
def test_names_that_say_nothing_are_refused(text, said):
    with pytest.raises(KernelError, match=said):
        kernel_names(text)


def test_auto_and_lists_are_names():
    assert kernel_names("auto") == AUTO
    assert kernel_names("rbf, linear+rbf") == ("rbf", "linear+rbf")
    with pytest.raises(KernelError, match="needs dates as the only input"):
        covariance("trend-seasonal", 1)
    assert covariance("trend-seasonal", 1, year=0.5).noise == pytest.approx(0.01)


def curvature(kernel: Kernel, j: int) -> float:
    """-d^2 k / dx_j dx_j at 0 over k(0), which is the variance of the slope over that of the function."""
    h = 1e-4
    step = torch.zeros(1, 3, dtype=torch.float64)
    step[0, j] = h
    zero = torch.zeros(1, 3, dtype=torch.float64)
    with torch.no_grad():
        k = [float(kernel.double()(zero, factor * step).to_dense()) for factor in (-1, 0, 1)]
    return (2 * k[1] - k[0] - k[2]) / h**2 / k[1]


def randomised(kernel: Kernel) -> Kernel:
    kernel = kernel.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5)
    return kernel


@pytest.mark.parametrize(
    "kernel",
    [
        ScaleKernel(RBFKernel(ard_num_dims=3)),
        ScaleKernel(RBFKernel(ard_num_dims=3)) + ScaleKernel(PeriodicKernel(ard_num_dims=3)),
        ScaleKernel(RBFKernel(ard_num_dims=3)) * ScaleKernel(RBFKernel(ard_num_dims=2, active_dims=(0, 2))),
        RBFKernel() + ScaleKernel(RBFKernel(active_dims=(1,))),
        covariance("rbf+rq", 3).kernel,
        DecayingPeriodicKernel(2.0, 3.0),
    ],
    ids=["rbf", "sum", "product", "shared", "named", "decaying"],
)
def test_inverse_squares_are_slopes_of_smooth_kernels(kernel):
    kernel = randomised(kernel)
    expected = [curvature(kernel, j) for j in range(3)]
    assert max(expected) > 0.1
    # Differences of steps h = 1e-4 are off by h^2 of the fourth derivative, and by rounding over h^2.
    torch.testing.assert_close(inverse_squares(kernel, 3).tolist(), expected, rtol=1e-5, atol=1e-6)


def test_a_matern_counts_by_its_length_scale_and_a_linear_part_by_its_slope():
    kernel = MaternKernel(nu=1.5, ard_num_dims=3)
    kernel.lengthscale = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(inverse_squares(kernel, 3), torch.tensor([1.0, 0.25, 0.0625], dtype=torch.float64))
    linear = LinearKernel()
    linear.variance = torch.tensor(2.0)
    # Slopes 2 + 1 / l^2 of a function whose variance is 2 * 3 + 1.
    expected = torch.tensor([2 + 1.0, 2 + 0.25, 2 + 0.0625], dtype=torch.float64) / 7
    torch.testing.assert_close(inverse_squares(kernel + linear, 3), expected)


def test_without_a_length_scale_nothing_is_said():
    with pytest.raises(ValueError, match="PolynomialKernel has no length-scale"):
        inverse_squares(PolynomialKernel(power=2), 3)
    assert math.isfinite(float(inverse_squares(RBFKernel(), 3).sum()))
