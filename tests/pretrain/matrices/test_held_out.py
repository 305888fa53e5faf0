"""The families of evaluation are what their names say."""

from __future__ import annotations

import torch

from pretrain.matrices import (
    Diagonal,
    Identity,
    Toeplitz,
)
from tests.pretrain.matrices.measures import COUNT, diagonals, off_diagonal, relative, seeded, toeplitz_part


def test_the_identity_is_a_positive_multiple_of_the_identity():
    matrices = Identity().sample(COUNT, 6, seeded())
    assert torch.equal(matrices, matrices[:, :1, :1] * torch.eye(6).double())


def test_diagonal_matrices_are_diagonal_but_not_constant():
    matrices = Diagonal().sample(COUNT, 6, seeded())
    assert not off_diagonal(matrices).any()
    assert (diagonals(matrices).std(-1) > 0).all()


def test_toeplitz_matrices_are_constant_along_diagonals_but_not_diagonal():
    matrices = Toeplitz().sample(COUNT, 12, seeded())
    assert relative(matrices - toeplitz_part(matrices), matrices).max() < 1e-14
    assert relative(off_diagonal(matrices), matrices).median() > 0.1
