"""Banded, Wishart and Gaussian matrices."""

from __future__ import annotations

import torch

from pretrain.matrices import (
    Banded,
    Gaussian,
    Wishart,
)
from tests.pretrain.matrices.measures import COUNT, seeded


def test_banded_matrices_are_zero_outside_bands_of_every_allowed_width():
    family, n = Banded(), 20
    offset = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    width = ((family.sample(COUNT, n, seeded()) != 0) * offset).amax((1, 2))
    assert set(width.tolist()) == set(range(1, family.largest_bandwidth(n) + 1)) == {1, 2, 3, 4, 5}


def test_wishart_roots_have_n_to_4n_columns_and_the_identity_as_mean():
    root = Wishart().root(2000, 5, seeded())
    columns = (root != 0).any(1).sum(-1)
    assert set(columns.tolist()) == set(range(5, 21))
    mean = (root @ root.mT).mean(0)
    torch.testing.assert_close(mean, torch.eye(5).double(), atol=0.06, rtol=0)


def test_gaussian_matrices_are_marked_and_are_indefinite_on_the_semicircle():
    matrices = Gaussian().draw(20, 200, seeded())
    values = torch.linalg.eigvalsh(matrices)
    assert not Gaussian.definite
    assert (values[:, 0] + 2).abs().max() < 0.2
    assert (values[:, -1] - 2).abs().max() < 0.2
