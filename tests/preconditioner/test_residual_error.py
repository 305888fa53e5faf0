"""Residuals whose rounding no model of random signs covers."""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.preconditioner.residual_error import residual_error
from gp_rangeformer.report import collect_reports
from gp_rangeformer.system.linear_system import LinearSystem
from tests.system.systems import kernel_matrix, points, system, targets

N, COLUMNS = 1200, 8


def nearly_constant(dtype: torch.dtype) -> LinearSystem:
    """Two groups of rows, one after the other, that a long length-scale hardly tells apart."""
    x = torch.cat([(torch.arange(N) >= N // 2).double().unsqueeze(1), 1e-3 * points(N, 2)], dim=1)
    return system(2.45 * kernel_matrix(x, "rbf", 100.0), 1.0, dtype)


def true_error(linear_system: LinearSystem, rhs: Tensor, solution: Tensor, residual: Tensor) -> Tensor:
    """What the residual is off by, in extended precision."""
    dense = linear_system.to_dense().numpy().astype(np.longdouble)
    exact = rhs.numpy().astype(np.longdouble) - dense @ solution.numpy().astype(np.longdouble)
    return torch.from_numpy(np.linalg.norm((exact - residual.numpy()).astype(np.float64), axis=0))


SOLUTIONS = {
    "stretches of one sign": lambda: torch.where(torch.arange(N) < N // 2, 1.0, -1.0).unsqueeze(1).double(),
    "one sign": lambda: torch.ones(N, 1, dtype=torch.float64),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOLUTIONS)
def test_partial_sums_that_drift_are_seen(name: str, dtype: torch.dtype) -> None:
    linear_system = nearly_constant(dtype)
    solution = (SOLUTIONS[name]() * torch.linspace(0.7, 1.9, COLUMNS)).to(dtype)
    rhs = linear_system.wide_matmul(solution.double()).to(dtype)
    residual = rhs - linear_system.matmul(solution)
    true = true_error(linear_system, rhs, solution, residual)
    stated = torch.from_numpy(residual_error(linear_system, rhs, solution, residual))
    assert bool((true <= stated).all())
    if dtype == torch.float32:
        modelled = linear_system.rounding_scale * torch.linalg.vector_norm(solution.double(), dim=0)
        assert bool((true > modelled).any())


@pytest.mark.parametrize("m", [1, 5, 40])
def test_random_signs_are_left_to_the_model(m: int) -> None:
    linear_system = system(kernel_matrix(points(N, 3)), 0.1, torch.float32)
    solution = targets(N, m).float()
    rhs = linear_system.wide_matmul(solution.double()).float()
    stated = residual_error(linear_system, rhs, solution, rhs - linear_system.matmul(solution))
    modelled = linear_system.rounding_scale * torch.linalg.vector_norm(solution.double(), dim=0).numpy()
    assert (stated >= modelled).all()
    assert (stated <= 6 * modelled).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_zeros_and_no_columns(dtype: torch.dtype) -> None:
    linear_system = system(kernel_matrix(points(50, 3)), 0.1, dtype)
    zeros = torch.zeros(50, 3, dtype=dtype)
    assert (residual_error(linear_system, zeros, zeros, zeros) == 0).all()
    assert residual_error(linear_system, zeros[:, :0], zeros[:, :0], zeros[:, :0]).shape == (0,)


@pytest.mark.parametrize("m", [8, 40])
@pytest.mark.parametrize("lengthscale", [10.0, 100.0])
def test_solves_of_sorted_groups_are_as_near_as_they_say(m: int, lengthscale: float) -> None:
    """By the public call: true residuals were 20 times what was stated."""
    n = 1600
    x = torch.cat([(torch.arange(n) >= n // 2).float().unsqueeze(1), 1e-3 * points(n, 2).float()], dim=1)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.initialize(**{"outputscale": 2.45, "base_kernel.lengthscale": lengthscale})
    rhs = torch.where(torch.arange(n) < n // 2, 1.0, -1.0).unsqueeze(1) * torch.linspace(0.7, 1.9, m)
    with torch.no_grad(), settings.rangeformer(), settings.min_size(1500), collect_reports() as reports:
        covariance: Any = kernel(x)
        solution = covariance.add_diagonal(torch.ones(n)).solve(rhs)
        dense = covariance.to_dense().double()
    dense.diagonal().add_(1.0)
    left = torch.linalg.vector_norm(rhs.double() - dense @ solution.double(), dim=0)
    true = float((left / torch.linalg.vector_norm(rhs.double(), dim=0)).max())
    assert reports[-1].solver == "rangeformer"
    assert true <= reports[-1].residual <= 1e-3
