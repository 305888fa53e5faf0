"""Symmetric positive definite systems with a known spectrum and a known solution."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def random_systems(
    count: int, n: int, condition: float, generator: torch.Generator
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """A = Q' Lambda Q, b = A x and x, float32, for ``count`` systems; O(n^3) each.

    Q is Haar (QR of a Gaussian matrix, signs fixed). For n > 1 the largest eigenvalue is 1, the smallest 1/condition,
    and the others are log-uniform in between. x ~ N(0, I/n): were it N(0, I), b b' inside a layer would grow with n.
    """
    orthogonal, triangular = torch.linalg.qr(torch.randn(count, n, n, generator=generator))
    orthogonal = orthogonal * triangular.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    spectrum = condition ** -torch.rand(count, n, generator=generator)
    spectrum[:, -1] = 1 / condition
    spectrum[:, 0] = 1.0
    matrix = (orthogonal * spectrum.unsqueeze(-2)) @ orthogonal.mT
    solution = torch.randn(count, n, generator=generator) * n**-0.5
    return matrix, (matrix @ solution.unsqueeze(-1)).squeeze(-1), solution
