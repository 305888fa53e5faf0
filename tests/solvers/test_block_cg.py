from __future__ import annotations

import math

import pytest
import torch

from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.solvers.block_cg import block_cg
from gp_rangeformer.system.reason import Reason
from tests.system.systems import kernel_matrix, points, spectrum_matrix, system, targets

N = 300


def run(linear_system, rhs, *, rank=30, tolerance=1e-6, energy=math.inf, max_passes=200):
    preconditioner = nystrom_preconditioner(linear_system, Landmarks(torch.arange(rank)))
    norm = torch.linalg.vector_norm(rhs, dim=0)
    return block_cg(
        linear_system,
        preconditioner,
        torch.zeros_like(rhs),
        rhs,
        stop_norm=tolerance * norm.clamp_min(1e-30),
        stop_energy=torch.full_like(norm, energy),
        max_passes=max_passes,
    )


@pytest.fixture
def hard():
    return system(kernel_matrix(points(N, 4)), 1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-10)])
def test_every_column_reaches_its_target(hard, dtype, tolerance) -> None:
    linear_system = system(hard.to_dense() - torch.diag(hard.noise), hard.noise, dtype)
    rhs = targets(N, 9).to(dtype) * torch.logspace(-6, 6, 9, dtype=dtype)
    result = run(linear_system, rhs, tolerance=tolerance)
    assert result.reason is Reason.CONVERGED
    dense = linear_system.to_dense(torch.float64)
    residual = torch.linalg.vector_norm(rhs.double() - dense @ result.value.double(), dim=0)
    assert bool((residual <= 1.05 * tolerance * torch.linalg.vector_norm(rhs.double(), dim=0)).all())


def test_one_iteration_is_one_pass(hard) -> None:
    hard.take_counts()
    result = run(hard, targets(N, 3))
    assert hard.take_counts()[0] == result.iterations > 3


def test_shared_directions_save_iterations(hard) -> None:
    rhs = targets(N, 33)
    alone = max(run(hard, rhs[:, j : j + 1]).iterations for j in range(33))
    assert run(hard, rhs).iterations < 0.7 * alone


@pytest.mark.parametrize(("rank", "rest"), [(8, 1e-2), (16, 1e-4), (24, 1e-4)])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_nearly_dependent_columns_is_not_taken_for_a_negative_direction(rank, rest, seed) -> None:
    """33 columns in two dimensions, but for a small rest: what is left of the others is rounded by eps over it."""
    linear_system = system(kernel_matrix(0.3 * points(N, 2, seed), "rbf", 0.7), 0.05, torch.float32)
    rhs = (targets(N, 2, seed) @ targets(2, 33, seed) + rest * targets(N, 33, seed + 1)).float()
    assert linear_system.trusted
    result = run(linear_system, rhs, rank=rank, tolerance=1e-4)
    assert result.reason is Reason.CONVERGED
    residual = rhs.double() - linear_system.to_dense(torch.float64) @ result.value.double()
    # The recurrence's own residual drifts from this one by the rounding of its products.
    drift = linear_system.rounding_scale * torch.linalg.vector_norm(result.value.double(), dim=0)
    reached = 1e-4 * torch.linalg.vector_norm(rhs.double(), dim=0)
    assert bool((torch.linalg.vector_norm(residual, dim=0) <= reached + (1 + result.iterations) * drift).all())


def test_dependent_zero_and_solved_columns_do_no_harm(hard) -> None:
    columns = targets(N, 3)
    rhs = torch.cat(
        [columns, columns[:, :2], torch.zeros(N, 1, dtype=torch.float64), columns @ torch.ones(3, 2).double()], 1
    )
    result = run(hard, rhs, tolerance=1e-9)
    assert result.reason is Reason.CONVERGED
    exact = torch.linalg.solve(hard.to_dense(), rhs)
    torch.testing.assert_close(result.value, exact, rtol=1e-6, atol=1e-6)
    assert bool((result.value[:, 5] == 0).all())


def test_more_columns_than_rows_converge_at_once() -> None:
    small = system(kernel_matrix(points(10, 2)), 0.1)
    result = run(small, targets(10, 40), rank=3, tolerance=1e-10)
    assert result.reason is Reason.CONVERGED
    assert result.iterations <= 2


def test_the_energy_target_stops_later_than_the_norm_alone(hard) -> None:
    rhs = targets(N, 1)
    by_norm = run(hard, rhs, tolerance=0.1)
    by_energy = run(hard, rhs, tolerance=0.1, energy=1e-6)
    assert by_energy.iterations > by_norm.iterations


def test_the_budget_is_kept_and_named(hard) -> None:
    hard.take_counts()
    result = run(hard, targets(N, 2), tolerance=1e-12, max_passes=5)
    assert result.reason is Reason.MAX_PASSES
    assert hard.take_counts()[0] == 5


def test_a_negative_direction_is_found() -> None:
    eigenvalues = torch.linspace(0.5, 1, 60, dtype=torch.float64)
    eigenvalues[:5] = -2
    kernel = spectrum_matrix(eigenvalues)
    indefinite = system(kernel + 3 * torch.eye(60, dtype=torch.float64), 0.1)
    preconditioner = nystrom_preconditioner(indefinite, Landmarks(torch.arange(5)))
    rhs = targets(60, 4)
    norm = torch.linalg.vector_norm(rhs, dim=0)
    broken = system(kernel, 0.1)
    result = block_cg(
        broken,
        preconditioner,
        torch.zeros_like(rhs),
        rhs,
        stop_norm=1e-8 * norm,
        stop_energy=torch.full_like(norm, math.inf),
        max_passes=100,
    )
    assert result.reason is Reason.NOT_PSD
