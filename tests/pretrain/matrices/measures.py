"""What the tests of the families measure: ranks, spectra, distances from a structure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.matrices import (
    GAUSSIAN,
    HELD_OUT,
    STRUCTURED,
    GramFamily,
)

ALL = (*STRUCTURED, GAUSSIAN, *HELD_OUT)
DEFINITE = (*STRUCTURED, *HELD_OUT)
GRAMS = tuple(family for family in STRUCTURED if isinstance(family, GramFamily))
COUNT = 50


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(families):
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


def ranks(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_rank(matrices, rtol=1e-10)


def spectra(matrices: Tensor) -> Tensor:
    """Eigenvalues, largest first, largest equal to 1."""
    values = torch.linalg.eigvalsh(matrices).flip(-1)
    return values / values[:, :1]


def diagonals(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def off_diagonal(matrices: Tensor) -> Tensor:
    return matrices - torch.diag_embed(diagonals(matrices))


def toeplitz_part(matrices: Tensor) -> Tensor:
    """The nearest Toeplitz matrices: every diagonal replaced by its mean."""
    n = matrices.shape[-1]
    nearest = torch.zeros_like(matrices)
    for offset in range(-(n - 1), n):
        along = matrices.diagonal(offset, -2, -1)
        nearest.diagonal(offset, -2, -1).copy_(along.mean(-1, keepdim=True).expand_as(along))
    return nearest


def relative(difference: Tensor, matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(difference) / torch.linalg.matrix_norm(matrices)
