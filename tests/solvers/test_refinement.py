"""From a first guess to a certified solution: what is spared, and what is not believed."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.solvers import refinement
from gp_rangeformer.solvers.refinement import refine
from gp_rangeformer.system.reason import Reason
from tests.system.systems import kernel_matrix, points, system, targets

N, M = 300, 4
SYSTEM = system(kernel_matrix(points(N, 4)), 1e-2)
PRECONDITIONER = nystrom_preconditioner(SYSTEM, Landmarks(torch.arange(30)))
RHS = targets(N, M)
EXACT = torch.linalg.solve(SYSTEM.to_dense(), RHS)


def solve(initial, **asked):
    SYSTEM.take_counts()
    return refine(SYSTEM, PRECONDITIONER, RHS, initial, tolerance=1e-4, max_passes=200, **asked)


def test_a_guess_that_certifies_costs_one_pass_and_no_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(refinement, "block_cg")
    solution = solve(EXACT)
    assert solution.converged
    assert (solution.iterations, solution.passes) == (0, 1)
    assert solution.correction is not None
    torch.testing.assert_close(solution.correction, torch.zeros_like(RHS), rtol=0, atol=1e-6)
    for j in range(M):
        assert solution.inv_quad[j].contains(float(RHS[:, j] @ EXACT[:, j]))


def test_a_small_residual_with_a_large_energy_is_refined() -> None:
    """Along the smallest eigenvector of A a small residual hides a large error."""
    _, vectors = torch.linalg.eigh(SYSTEM.to_dense())
    guess = EXACT + 5e-3 * vectors[:, :1]
    assert solve(guess).iterations == 0
    asked = solve(guess, stop_energy=1e-9)
    assert asked.converged
    assert asked.iterations > 0
    residual = RHS - SYSTEM.to_dense() @ asked.value
    assert float((residual * PRECONDITIONER.solve(residual)).sum(0).max()) <= 1e-9


@pytest.mark.parametrize("column", [float("nan"), 1e30, float("inf")])
def test_a_column_of_garbage_starts_from_zero_and_the_others_do_not(column: float) -> None:
    guess = EXACT.clone()
    guess[:, 1] = column
    solution = solve(guess)
    assert solution.converged
    torch.testing.assert_close(solution.value, EXACT, rtol=1e-2, atol=1e-2)
    assert solution.iterations <= solve(None).iterations


def test_a_residual_that_came_with_the_guess_is_not_believed() -> None:
    lying = (torch.zeros_like(RHS), 1e-9 * RHS)
    solution = solve(lying)
    assert solution.converged
    residual = torch.linalg.vector_norm(RHS - SYSTEM.to_dense() @ solution.value, dim=0)
    assert bool((residual <= 1e-4 * torch.linalg.vector_norm(RHS, dim=0)).all())


def test_right_hand_sides_that_are_not_finite_are_refused_without_a_pass() -> None:
    SYSTEM.take_counts()
    broken = RHS.clone()
    broken[3, 2] = float("inf")
    solution = refine(SYSTEM, PRECONDITIONER, broken, None, tolerance=1e-4, max_passes=200)
    assert solution.reason is Reason.NOT_FINITE
    assert SYSTEM.take_counts()[0] == 0
