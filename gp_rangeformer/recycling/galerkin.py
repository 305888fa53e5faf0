"""The best solution inside a given subspace, in the norm of A: one pass over K."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.system.linear_system import LinearSystem


def galerkin(
    system: LinearSystem, basis: Float[Tensor, "n k"], rhs: Float[Tensor, "n m"]
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """X = V (V'AV)^-1 V' B and its residual B - A X, for V = the columns of ``basis``.

    The residual costs nothing extra, because A V is known. Directions that the others already span are dropped.
    O(n^2 k) for the pass, O(n k (k + m)) besides.
    """
    norms = torch.linalg.vector_norm(basis, dim=0)
    usable = norms.isfinite() & (norms > 0)
    orthonormal, triangle = torch.linalg.qr(basis[:, usable] / norms[usable])
    independent = triangle.diagonal().abs() > 10 * torch.finfo(basis.dtype).eps
    orthonormal = orthonormal[:, independent]
    if orthonormal.shape[1] == 0:
        return torch.zeros_like(rhs), rhs.clone()
    image = system.matmul(orthonormal)
    core = (orthonormal.mT @ image).double()
    eigenvalues, vectors = torch.linalg.eigh(0.5 * (core + core.mT))
    keep = eigenvalues > torch.finfo(basis.dtype).eps * eigenvalues[-1]
    root = vectors[:, keep] * eigenvalues[keep].rsqrt()
    coefficients = (root @ (root.mT @ (orthonormal.mT @ rhs).double())).to(rhs.dtype)
    return orthonormal @ coefficients, torch.addmm(rhs, image, coefficients, alpha=-1)
