from __future__ import annotations

import pytest
import torch

from gp_rangeformer.preconditioner.landmarks import Landmarks, rp_cholesky_landmarks, uniform_landmarks
from gp_rangeformer.preconditioner.nystrom import PreconditionerError, ProposedTestMatrix, nystrom_preconditioner
from tests.system.systems import kernel_matrix, points, spectrum_matrix, system, targets

N = 120


def dense_preconditioner(preconditioner):
    basis = preconditioner.basis.double()
    inner = torch.eye(len(basis), dtype=torch.float64) + (basis * preconditioner.spectrum) @ basis.mT
    root = preconditioner.root_noise.double()
    return root.unsqueeze(-1) * inner * root


@pytest.fixture
def heteroscedastic():
    kernel = kernel_matrix(points(N, 2), "rbf", 1.5)
    return system(kernel, torch.logspace(-3, 0, N, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 10, 60, N])
@pytest.mark.parametrize("source", ["landmarks", "gaussian", "garbage"])
def test_any_proposal_gives_a_preconditioner_below_the_matrix(heteroscedastic, rank, source) -> None:
    generator = torch.Generator().manual_seed(0)
    if source == "landmarks":
        proposal = uniform_landmarks(heteroscedastic, rank, generator)
    else:
        omega = torch.randn(N, rank, generator=generator, dtype=torch.float64)
        proposal = ProposedTestMatrix(omega if source == "gaussian" else torch.ones_like(omega) + 1e-9 * omega)
    preconditioner = nystrom_preconditioner(heteroscedastic, proposal)
    dense = heteroscedastic.to_dense()
    gap = torch.linalg.eigvalsh(dense - dense_preconditioner(preconditioner))
    assert float(gap[0]) > -1e-8 * float(torch.linalg.matrix_norm(dense, 2))
    assert preconditioner.logdet() <= float(torch.logdet(dense)) + 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solves_roots_and_logdet_belong_to_one_matrix(heteroscedastic, dtype) -> None:
    linear_system = system(heteroscedastic.to_dense() - torch.diag(heteroscedastic.noise), heteroscedastic.noise, dtype)
    preconditioner = nystrom_preconditioner(linear_system, Landmarks(torch.arange(0, N, 6)))
    dense = dense_preconditioner(preconditioner)
    rhs = targets(N, 3).to(dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-8
    solution = torch.linalg.solve(dense, rhs.double())
    torch.testing.assert_close(preconditioner.solve(rhs).double(), solution, rtol=tolerance, atol=tolerance)
    # C^-T C^-1 = P^-1
    twice = preconditioner.root_solve_transposed(preconditioner.root_solve(rhs)).double()
    torch.testing.assert_close(twice, solution, rtol=tolerance, atol=tolerance)
    assert preconditioner.logdet() == pytest.approx(float(torch.logdet(dense)), rel=1e-5)


def test_float32_keeps_the_lower_bound_of_the_log_determinant_at_low_noise() -> None:
    """Forming the Gram matrix before the root put log|P| 0.1 nats per point above log|A| on such systems."""
    kernel = kernel_matrix(points(300, 3), "rbf", 2.0)
    for dtype in (torch.float32, torch.float64):
        for noise in (1e-1, 1e-3, 1e-5):
            linear_system = system(kernel, noise, dtype)
            exact = float(torch.logdet(linear_system.to_dense(torch.float64)))
            preconditioner = nystrom_preconditioner(linear_system, Landmarks(torch.arange(300)))
            assert preconditioner.logdet() <= exact + 300 * 2e-7 / noise


def test_a_kernel_that_is_not_psd_on_the_range_is_refused() -> None:
    linear_system = system(spectrum_matrix(torch.linspace(-1, 1, 40, dtype=torch.float64)), 0.1)
    with pytest.raises(PreconditionerError, match="positive semi-definite"):
        nystrom_preconditioner(linear_system, Landmarks(torch.arange(30)))


def test_more_landmarks_leave_a_smaller_gap() -> None:
    linear_system = system(kernel_matrix(points(400, 3)), 0.01)
    gaps = []
    for rank in (20, 80, 320):
        landmarks = rp_cholesky_landmarks(linear_system, rank, torch.Generator().manual_seed(0))
        gaps.append(float(nystrom_preconditioner(linear_system, landmarks).gap.sum()))
    assert gaps[0] > 1.5 * gaps[1] > 2 * gaps[2]
