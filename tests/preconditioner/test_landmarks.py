from __future__ import annotations

import pytest
import torch

from gp_rangeformer.preconditioner.landmarks import rp_cholesky_landmarks, uniform_landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from tests.system.systems import kernel_matrix, points, system


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", [rp_cholesky_landmarks, uniform_landmarks])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_landmarks_are_distinct_points_of_the_system_and_repeatable(draw, dtype) -> None:
    linear_system = system(kernel_matrix(points(150, 3)), 0.1, dtype)
    index = draw(linear_system, 60, generator()).index
    assert len(index.unique()) == len(index) == 60
    assert int(index.min()) >= 0
    assert int(index.max()) < 150
    assert torch.equal(index, draw(linear_system, 60, generator()).index)
    assert len(draw(linear_system, 1000, generator()).index) <= 150


def test_random_pivots_follow_the_residual_to_the_rare_cluster() -> None:
    """Uniform sampling misses a small far-away cluster; sampling by the residual's diagonal does not."""
    x = points(500, 2)
    x[:10] = 100 + 3 * x[:10]
    linear_system = system(kernel_matrix(x, "rbf", 2.0), 1e-3)
    gaps = {}
    for draw in (rp_cholesky_landmarks, uniform_landmarks):
        draws = [draw(linear_system, 60, generator(seed)) for seed in range(5)]
        gaps[draw] = sum(float(nystrom_preconditioner(linear_system, marks).gap.sum()) for marks in draws)
    assert gaps[rp_cholesky_landmarks] < 0.3 * gaps[uniform_landmarks]


def test_a_low_rank_kernel_needs_no_more_landmarks_than_its_rank() -> None:
    low_rank = points(200, 5)
    linear_system = system(low_rank @ low_rank.mT, 0.1)
    assert len(rp_cholesky_landmarks(linear_system, 100, generator()).index) < 60


def test_a_diagonal_that_is_not_positive_is_refused() -> None:
    for kernel in (torch.zeros(10, 10), torch.full((10, 10), float("nan"))):
        with pytest.raises(ValueError, match="positive diagonal"):
            rp_cholesky_landmarks(system(kernel.double(), 0.1), 5, generator())
