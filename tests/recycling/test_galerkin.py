from __future__ import annotations

import torch

from gp_rangeformer.recycling.galerkin import galerkin
from tests.system.systems import kernel_matrix, points, system, targets

N = 80


def test_a_basis_that_holds_the_solution_gives_it() -> None:
    linear_system = system(kernel_matrix(points(N, 2)), 0.05)
    rhs = targets(N, 2)
    solution = torch.linalg.solve(linear_system.to_dense(), rhs)
    basis = torch.cat([solution @ torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double(), targets(N, 3, seed=9)], dim=1)
    value, residual = galerkin(linear_system, basis, rhs)
    torch.testing.assert_close(value, solution, rtol=1e-8, atol=1e-8)
    assert float(residual.abs().max()) < 1e-8


def test_the_answer_is_the_best_of_the_subspace_in_the_energy_norm_with_its_true_residual() -> None:
    linear_system = system(kernel_matrix(points(N, 2)), 0.05)
    dense = linear_system.to_dense()
    rhs, basis = targets(N, 1), targets(N, 4, seed=3)
    value, residual = galerkin(linear_system, basis, rhs)
    torch.testing.assert_close(residual, rhs - dense @ value, rtol=1e-8, atol=1e-10)
    # Galerkin's condition: the residual is orthogonal to the subspace
    assert float((basis.mT @ residual).abs().max()) < 1e-9
    assert linear_system.passes == 1


def test_dependent_and_broken_directions_are_dropped() -> None:
    linear_system = system(kernel_matrix(points(N, 2)), 0.05)
    column = targets(N, 1)
    basis = torch.cat([column, 2 * column, torch.zeros_like(column), torch.full_like(column, float("nan"))], dim=1)
    value, residual = galerkin(linear_system, basis, targets(N, 2, seed=5))
    assert bool(value.isfinite().all())
    assert bool(residual.isfinite().all())
    nothing, residual = galerkin(linear_system, torch.zeros(N, 2, dtype=torch.float64), column)
    assert bool((nothing == 0).all())
    assert torch.equal(residual, column)
