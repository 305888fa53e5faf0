"""Proposals for the next solution from what the memory holds. The solver computes the residual of what comes out."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.system import device_cores
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.small_cores import to_host

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
    near: Float[Tensor, "n m"] | None = None,
) -> Float[Tensor, "n m"] | None:
    """sum_k c_k basis_k with the c that minimise |B - A X0| on a few rows of A: s m equations for len(basis) unknowns.
    X0 is that sum, and ``near`` besides.

    The basis holds old solutions X and what their residuals suggested, Z = P^-1 R; the coefficients come out close to
    those of hindsight (pretrain/README.md). Columns are weighted by 1 / |b|. None where nothing can be fitted.
    O(s n m len(basis)), reads s columns of K, no pass.
    """
    if not basis or not len(rows):
        return None
    if near is None and rhs.device.type != "cpu" and device_cores.resident(rhs):
        return _fit_on_device(system, rhs, torch.stack(basis), rows)
    # Rows of A itself: out of place, for the columns may be K's own memory.
    own = torch.arange(len(rows), device=rows.device)
    chosen = system.columns(rows).mT.index_put((own, rows), system.diagonal()[rows] + system.noise[rows])
    wanted = rhs[rows] if near is None else rhs[rows] - chosen @ near
    images, target, norm = to_host(
        torch.cat([chosen @ vector for vector in basis]), wanted, torch.linalg.vector_norm(rhs, dim=0)
    )
    images = images.reshape(len(basis), len(rows), -1)
    coefficients = least_squares(images, target, np.maximum(norm, torch.finfo(rhs.dtype).tiny))
    if coefficients is None:
        return None
    total = torch.zeros_like(rhs)
    for weight, vector in zip(coefficients.tolist(), basis, strict=True):
        total.add_(vector, alpha=weight)
    return total


def _fit_on_device(
    system: LinearSystem, rhs: Float[Tensor, "n m"], basis: Float[Tensor, "k n m"], rows: Int[Tensor, " s"]
) -> Float[Tensor, "n m"]:
    """The same without a look; zero where nothing can be fitted."""
    noise = system.noise[rows].unsqueeze(-1)
    images = torch.addcmul(system.columns(rows).mT @ basis, noise, basis.index_select(1, rows))
    norm = torch.linalg.vector_norm(rhs, dim=0)
    coefficients = device_cores.fit(images, rhs.index_select(0, rows), norm, _RCOND)
    return (coefficients @ basis.flatten(1)).view_as(rhs)


def least_squares(
    images: Float64[np.ndarray, "k s m"], target: Float64[np.ndarray, "s m"], norm: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, " k"] | None:
    """The c that minimise the sum over columns of |target - sum_k c_k images_k|^2 / norm^2, or None if not finite.

    A handful of unknowns: their Gram matrix, of unit columns and in float64, decides.
    """
    design = (images / norm).reshape(len(images), -1)
    wanted = (target / norm).reshape(-1)
    if not (np.isfinite(design).all() and np.isfinite(wanted).all()):
        return None
    lengths = np.maximum(np.linalg.norm(design, axis=1), np.finfo(np.float32).tiny)
    design = design / lengths[:, None]
    eigenvalues, vectors = np.linalg.eigh(design @ design.T)
    kept = eigenvalues > _RCOND**2 * eigenvalues[-1]
    projected = vectors[:, kept].T @ (design @ wanted) / eigenvalues[kept]
    return vectors[:, kept] @ projected / lengths
