"""A Cholesky factor of A with rows and columns appended: what is known of n points serves n + m."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.system.linear_system import LinearSystem


def appended_factor(system: LinearSystem, factor: Float[Tensor, "k k"]) -> Float[Tensor, "n n"] | None:
    """L of A = L L' from that of its first k rows and columns, in the same dtype: the last m steps of the factorisation
    that would have made all of it, so that rounding is that of one, however often rows were appended.

    k^2 m + k m^2 + m^3 / 3 multiplications, m columns of K, and a copy of the factor: n^2 memory. None where A is not
    positive definite in the factor's dtype, or not finite.
    """
    n, k = system.size, len(factor)
    columns = system.columns(torch.arange(k, n, device=system.device)).to(factor.dtype)
    half = torch.linalg.solve_triangular(factor, columns[:k], upper=False)
    corner = columns[k:] - half.mT @ half
    corner.diagonal().add_(system.noise[k:])
    corner, info = torch.linalg.cholesky_ex(corner)
    if bool((info != 0) | ~corner.diagonal().sum().isfinite()):
        return None
    found = factor.new_empty(n, n).mT  # in the order of LAPACK, which need not copy it then
    found[:k, :k] = factor
    found[:k, k:] = 0
    found[k:, :k] = half.mT
    found[k:, k:] = corner
    return found
