"""What RangeFormer may ask of a matrix: its size, its diagonal, and products with tall blocks. Never its entries."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class MatrixOperator(Protocol):
    """A batch of symmetric n x n matrices, known through their diagonals and products."""

    @property
    def batch(self) -> int: ...

    @property
    def size(self) -> int: ...

    def diagonal(self) -> Float[Tensor, "b n"]: ...

    def matmul(self, block: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]: ...


class DenseOperator:
    """A batch of stored matrices.

    :param matrices: b x n x n or n x n, float32 or float64, symmetric to half their digits.
    :raises ValueError: not square, empty, not floating point, not finite, or not symmetric.
    """

    def __init__(self, matrices: Tensor) -> None:
        if matrices.dim() not in (2, 3) or matrices.shape[-1] != matrices.shape[-2] or matrices.numel() == 0:
            raise ValueError(f"matrices must be b x n x n or n x n and not empty, got {tuple(matrices.shape)}")
        if not matrices.is_floating_point():
            raise ValueError(f"matrices must be float32 or float64, got {matrices.dtype}: convert them first")
        if not bool(matrices.sum(dtype=torch.float64).isfinite()):
            raise ValueError("matrices hold NaN or infinite entries")
        apart = float((matrices - matrices.mT).abs().max())
        if apart > torch.finfo(matrices.dtype).eps ** 0.5 * float(matrices.abs().max()):
            raise ValueError(f"matrices must be symmetric, got entries (i, j) and (j, i) that are {apart:.2g} apart")
        self.matrices = matrices if matrices.dim() == 3 else matrices.unsqueeze(0)

    @property
    def batch(self) -> int:
        return self.matrices.shape[0]

    @property
    def size(self) -> int:
        return self.matrices.shape[-1]

    def diagonal(self) -> Float[Tensor, "b n"]:
        return self.matrices.diagonal(dim1=-2, dim2=-1)

    def matmul(self, block: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
        return (self.matrices @ block.to(self.matrices.dtype)).to(block.dtype)
