from __future__ import annotations

import pytest
import torch

from gp_rangeformer.preconditioner.landmarks import rp_cholesky_landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.solvers.gradient_weight import CONTROL_GAP, GradientWeight
from tests.system.systems import kernel_matrix, points, system, targets

N = 300


def build(lengthscale: float, noise: float, name: str = "rbf", rank: int = 120):
    linear_system = system(kernel_matrix(points(N, 2), name, lengthscale), noise)
    landmarks = rp_cholesky_landmarks(linear_system, rank, torch.Generator().manual_seed(0))
    preconditioner = nystrom_preconditioner(linear_system, landmarks)
    rhs = targets(N, 2)
    generator = torch.Generator().manual_seed(1)
    probes = (2 * torch.randint(0, 2, (N, 16), generator=generator) - 1).double()
    dense = linear_system.to_dense()
    solutions, probe_solutions = torch.linalg.solve(dense, rhs), torch.linalg.solve(dense, probes)
    weight = GradientWeight.build(preconditioner, linear_system.noise, solutions, probes, probe_solutions)
    return dense, preconditioner, rhs, weight


G_INV_QUAD = torch.tensor([0.5, -2.0], dtype=torch.float64)
G_LOGDET = torch.tensor(1.5, dtype=torch.float64)


def relative_error(dense, rhs, weight, direction) -> float:
    solutions = torch.linalg.solve(dense, rhs)
    exact = G_LOGDET * torch.linalg.inv(dense) - (G_INV_QUAD * solutions) @ solutions.mT
    return abs(float(((weight.dense(G_INV_QUAD, G_LOGDET) - exact) * direction).sum() / (exact * direction).sum()))


def test_a_range_that_holds_the_kernel_makes_the_gradient_exact() -> None:
    dense, preconditioner, rhs, weight = build(2.0, 0.1)
    assert float(preconditioner.gap.mean()) < 1e-4
    direction = kernel_matrix(points(N, 2), "rbf", 2.1) - kernel_matrix(points(N, 2), "rbf", 2.0)
    assert relative_error(dense, rhs, weight, direction) < 1e-3
    without = GradientWeight(
        weight.solutions, weight.probes, torch.linalg.solve(dense, weight.probes), weight.noise, None
    )
    assert relative_error(dense, rhs, without, direction) > 100 * relative_error(dense, rhs, weight, direction)


def test_the_control_variate_is_left_out_where_it_would_hurt() -> None:
    _, preconditioner, _, weight = build(0.3, 0.01, "matern12", rank=20)
    assert float(preconditioner.gap.mean()) > 10 * CONTROL_GAP
    assert weight.inverse is None


@pytest.mark.parametrize("lengthscale", [0.3, 2.0])
def test_the_diagonal_is_that_of_the_dense_weight(lengthscale) -> None:
    _, _, _, weight = build(lengthscale, 0.05)
    thin = weight.thin(G_INV_QUAD, G_LOGDET)
    torch.testing.assert_close(thin.own_diagonal(), weight.dense(G_INV_QUAD, G_LOGDET).diagonal())
