"""The symmetric part of a kernel matrix that is not symmetric to the last bits: the one meaning it has everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.allocation.workspace import empty_matrix

_TILE = 1024
_LAST_BITS = 4  # eps of the largest diagonal entry: products of z z' and z' z differ by as much


def symmetric_part(matrix: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], float]:
    """(K + K') / 2, and the largest |K_ij - K_ji| over the largest diagonal entry. K itself where it is symmetric up to
    rounding already (or not finite).

    A factorisation reads one triangle, a product with K reads its rows, and a quadratic form sees the symmetric part
    alone: they would answer for three matrices. One read of K, tile by tile; another matrix only where it is needed.
    """
    largest = matrix.diagonal().abs().amax()
    difference = torch.stack([(upper - lower.mT).abs().amax() for upper, lower, _ in _pairs(matrix)]).amax()
    if not bool(difference > _LAST_BITS * torch.finfo(matrix.dtype).eps * largest):
        return matrix, float(difference / largest)
    n = len(matrix)
    made = empty_matrix(n, n, matrix.dtype, matrix.device)
    for upper, lower, (rows, columns) in _pairs(matrix):
        mean = (upper + lower.mT).mul_(0.5)
        made[rows, columns] = mean
        made[columns, rows] = mean.mT
    return made, float(difference / largest)


def symmetric_parts(matrices: Float[Tensor, "count n n"]) -> tuple[Float[Tensor, "count n n"], float] | None:
    """The same of every element of a batch; None where they are large, and not symmetric up to rounding, or not finite.

    One n x n temporary for small matrices, tiles for others.
    """
    if matrices.shape[-1] > _TILE:
        found = [symmetric_part(matrix) for matrix in matrices]
        whole = all(part is matrix for (part, _), matrix in zip(found, matrices, strict=True))
        return (matrices, max(difference for _, difference in found)) if whole else None
    largest = matrices.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    relative = float(((matrices - matrices.mT).abs_().amax((-2, -1)) / largest).amax())
    if relative <= _LAST_BITS * torch.finfo(matrices.dtype).eps:
        return matrices, relative
    return ((matrices + matrices.mT).mul_(0.5), relative) if math.isfinite(relative) else None


def _pairs(matrix: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[slice, slice]]]:
    n = len(matrix)
    for start in range(0, n, _TILE):
        rows = slice(start, min(start + _TILE, n))
        for other in range(start, n, _TILE):
            columns = slice(other, min(other + _TILE, n))
            yield matrix[rows, columns], matrix[columns, rows], (rows, columns)
