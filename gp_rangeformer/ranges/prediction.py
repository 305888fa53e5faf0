"""Proposals for the next solution from what the memory holds. The solver computes the residual of what comes out."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.solvers.base import LinearSystem

SAMPLED_ROWS = 16
# Of the singular values of a least-squares problem whose float32 columns have unit norm.
_RCOND = 1e-6


def extrapolate(solutions: tuple[Float[Tensor, "n m"], ...]) -> Float[Tensor, "n m"] | None:
    """2 X[t-1] - X[t-2], or X[t-1] from a single solution. O(n m), no pass over K.

    Higher orders and smoothing over more steps are worse: they amplify the error at which the solutions were stopped.
    """
    if not solutions:
        return None
    if len(solutions) == 1:
        return solutions[-1]
    return torch.lerp(solutions[-2], solutions[-1], 2.0)


def sample_rows(order: Int[Tensor, " n"], landmarks: Int[Tensor, " r"]) -> Int[Tensor, " s"]:
    """Up to ``SAMPLED_ROWS`` points that are no landmarks: there the preconditioner has left no residual to fit (with
    landmarks among the rows the prediction came out worse than plain extrapolation).

    :param order: a random permutation of all points; its first suitable ones are taken.
    """
    candidates = order[: SAMPLED_ROWS + len(landmarks)]
    return candidates[~torch.isin(candidates, landmarks)][:SAMPLED_ROWS]


def fit_to_rows(
    system: LinearSystem,
    rhs: Float[Tensor, "n m"],
    basis: tuple[Float[Tensor, "n m"], ...],
    rows: Int[Tensor, " s"],
) -> Float[Tensor, "n m"] | None:
    """sum_k c_k basis_k with the c that minimise |B - A X0| on a few rows of A: s m equations for len(basis) unknowns.

    The basis holds old solutions X and what their residuals suggested, Z = P^-1 R; the coefficients come out close to
    those of hindsight (pretrain/README.md). Columns are weighted by 1 / |b|. None where nothing can be fitted.
    O(s n m len(basis)), reads s columns of K, no pass.
    """
    if not basis or not len(rows):
        return None
    kernel = system.columns(rows).mT
    noise = system.noise[rows].unsqueeze(-1)
    images = torch.stack([torch.addcmul(kernel @ vector, noise, vector[rows]) for vector in basis])
    norm = torch.linalg.vector_norm(rhs, dim=0).clamp_min(torch.finfo(rhs.dtype).tiny)
    coefficients = least_squares(images, rhs[rows], norm)
    if coefficients is None:
        return None
    total = torch.zeros_like(rhs)
    for weight, vector in zip(coefficients.tolist(), basis, strict=True):
        total.add_(vector, alpha=weight)
    return total


def least_squares(
    images: Float[Tensor, "k s m"], target: Float[Tensor, "s m"], norm: Float[Tensor, " m"]
) -> Float64[Tensor, " k"] | None:
    """The c that minimise the sum over columns of |target - sum_k c_k images_k|^2 / norm^2, or None if not finite."""
    # A handful of unknowns: their Gram matrix, of unit columns and in float64, decides on the CPU. One transfer.
    design = (images / norm).flatten(1).double()
    scale = torch.linalg.vector_norm(design, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    design = design / scale
    wanted = (target / norm).flatten().double().unsqueeze(-1)
    small = torch.cat([design @ design.mT, design @ wanted, scale], dim=1).cpu()
    gram, moments, lengths = small[:, :-2], small[:, -2], small[:, -1]
    if not bool(small.isfinite().all()):
        return None
    eigenvalues, vectors = torch.linalg.eigh(gram)
    kept = eigenvalues > _RCOND**2 * eigenvalues[-1]
    inverse = torch.where(kept, 1 / torch.where(kept, eigenvalues, 1), 0)
    return vectors @ (inverse * (vectors.mT @ moments)) / lengths
