"""Exact float64 answers for the very matrix, noise and targets that were evaluated, with what rounding leaves open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """log|A|, y' A^-1 y and log p(y) in nats; ``doubt``: what float64 leaves open; ``inverse``: A^-1; ``weights``:
    A^-1 y."""

    logdet: float
    inv_quad: float
    mll: float
    logdet_doubt: float
    mll_doubt: float
    inverse: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Indefinite:
    """A is not positive definite in float64: nothing is true of its log determinant."""

    smallest: float


def symmetric_part(kernel: Tensor, noise: Tensor) -> Tensor:
    """A = (K + K') / 2 + D in float64."""
    wide = kernel.double()
    matrix = 0.5 * (wide + wide.mT)
    matrix.diagonal().add_(noise.double())
    return matrix


def exact(kernel: Tensor, noise: Tensor, targets: Tensor) -> Truth | Indefinite:
    """The truth about A = K + D; the quadratic form is refined with residuals in extended precision."""
    matrix = symmetric_part(kernel, noise)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not bool(factor.isfinite().all()):
        smallest = float(torch.linalg.eigvalsh(matrix)[0]) if bool(matrix.isfinite().all()) else math.nan
        return Indefinite(smallest)
    n = len(matrix)
    wide, b = matrix.numpy().astype(np.longdouble), targets.double().numpy().astype(np.longdouble)

    def corrected(residual: np.ndarray) -> np.ndarray:
        column = torch.from_numpy(residual.astype(np.float64)).unsqueeze(-1)
        return torch.cholesky_solve(column, factor).squeeze(-1).numpy().astype(np.longdouble)

    solution = corrected(b)
    for _ in range(2):
        solution = solution + corrected(b - wide @ solution)
    residual = b - wide @ solution
    left = float(residual @ corrected(residual))
    inv_quad = float(b @ solution + residual @ solution)
    logdet = 2 * float(factor.diagonal().log().sum())
    inverse = torch.cholesky_inverse(factor)
    # d log|A| = tr(A^-1 E), E the backward error of the factorisation: entries of up to eps sqrt(n) A_ii, either sign.
    eps = torch.finfo(torch.float64).eps
    size = float(matrix.diagonal().max())
    logdet_doubt = 4 * eps * (n**0.5 * size * float(torch.linalg.matrix_norm(inverse)) + abs(logdet) + n)
    mll_doubt = 0.5 * logdet_doubt + abs(left) + 10 * eps * (abs(inv_quad) + n)
    return Truth(
        logdet,
        inv_quad,
        -0.5 * (inv_quad + logdet + n * math.log(2 * math.pi)),
        logdet_doubt,
        mll_doubt,
        inverse,
        torch.from_numpy(solution.astype(np.float64)),
    )


def relative_residual(kernel: Tensor, noise: Tensor, rhs: Tensor, solution: Tensor) -> float:
    """Largest |b - A x| / |b| over the columns, in float64."""
    wide = rhs.double()
    left = torch.linalg.vector_norm(wide - symmetric_part(kernel, noise) @ solution.double(), dim=0)
    return float((left / torch.linalg.vector_norm(wide, dim=0)).max())
