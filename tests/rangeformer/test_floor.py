"""Bounds of log|A| from a known floor of its eigenvalues and any range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_rangeformer.rangeformer.floor import floor_bounds
from gp_rangeformer.rangeformer.operator import DenseOperator
from tests.rangeformer.test_rangeformer import random_model
from tests.system.systems import kernel_matrix, points

N, FLOOR = 60, 0.05


def bounds(a: Tensor, columns: int, seed: int = 0) -> tuple[float, float]:
    """Nats, of a random range."""
    drawn = torch.randn(1, N, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(drawn).Q
    values, rotation = torch.linalg.eigh(basis.mT @ a @ basis)
    pairs = basis @ rotation
    lower, upper = floor_bounds(
        pairs, a @ pairs, values, a.diagonal()[None], torch.tensor([FLOOR], dtype=torch.float64)
    )
    return N * lower.item(), N * upper.item()


@pytest.mark.parametrize("columns", [1, 5, 20, N])
@pytest.mark.parametrize("seed", range(3))
def test_they_hold_for_any_range(columns: int, seed: int) -> None:
    a = kernel_matrix(points(N, 3, seed)) + 2 * FLOOR * torch.eye(N, dtype=torch.float64)
    lower, upper = bounds(a, columns, seed)
    exact = torch.logdet(a).item()
    assert lower <= exact + 1e-9
    assert exact - 1e-9 <= upper


def test_they_meet_where_the_range_holds_all_that_is_above_the_floor() -> None:
    """A random range of 12 columns, of a matrix that is the floor beside 4 eigenvalues."""
    root = torch.randn(N, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    a = root @ root.mT + FLOOR * torch.eye(N, dtype=torch.float64)
    exact = torch.logdet(a).item()
    assert bounds(a, 12) == pytest.approx((exact, exact), rel=1e-9)


def test_an_answer_by_probes_lies_within_them() -> None:
    """One loop with two probes, whose quadrature alone is worse."""
    a = kernel_matrix(points(N, 2)) + FLOOR * torch.eye(N, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    probes = torch.randn(1, N, 2, generator=generator, dtype=torch.float64).sign()
    asked = {"floor": torch.tensor(FLOOR, dtype=torch.float64), "isotropic": 2, "loops": 1, "generator": generator}
    with torch.no_grad():
        (output,) = random_model()(DenseOperator(a), probes, **asked)
    values, vectors = output.eigenpairs()
    diagonal, floor = a.diagonal()[None], torch.tensor([FLOOR], dtype=torch.float64)
    lower, upper = floor_bounds(vectors.flip(-1), a @ vectors.flip(-1), values.flip(-1), diagonal, floor)
    assert N * lower.item() - 1e-9 <= output.logdet.item() <= N * upper.item() + 1e-9
