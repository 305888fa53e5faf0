"""What a solver may ask of K, however K is held: as a dense matrix, recomputed at every product, or in parts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.kernels.native.product import multiply, multiply_wide


@runtime_checkable
class KernelMatrix(Protocol):
    """A symmetric n x n matrix, float32 or float64, without a graph.

    ``held_dense``: whether its n^2 numbers are in the memory of this process, so that a copy is no surprise.
    """

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def held_dense(self) -> bool: ...

    def matmul(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """K @ vectors, a new tensor, summed in the dtype of K."""
        ...

    def wide_product(self, vectors: Float64[Tensor, "n k"]) -> tuple[Float64[Tensor, "n k"], Float64[Tensor, " n"]]:
        """K @ vectors and the squared row norms sum_j K_ij^2, every product and sum in float64, also of a float32 K.
        For few columns: one read or evaluation of K."""
        ...

    def columns(self, index: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        """K[:, index]."""
        ...

    def diagonal(self) -> Float[Tensor, " n"]:
        """K_ii."""
        ...

    def to_dense(self, dtype: torch.dtype) -> Float[Tensor, "n n"]:
        """K as a new dense matrix, which the caller may overwrite."""
        ...

    def is_finite(self) -> bool:
        """Whether K holds no NaN and no infinity."""
        ...

    def everywhere(self, holds: bool) -> bool:
        """Whether something holds in every process that shares K: who decides otherwise than the others waits for what
        they never send."""
        ...


class DenseKernelMatrix:
    """K as a tensor. It is never modified.

    :raises ValueError: if it is not square, or empty.
    """

    held_dense = True

    def __init__(self, value: Tensor) -> None:
        if value.dim() != 2 or value.shape[0] != value.shape[1] or value.shape[0] == 0:
            raise ValueError(f"the kernel matrix must be square and not empty, got shape {tuple(value.shape)}")
        self._value = value

    @property
    def shape(self) -> torch.Size:
        return self._value.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._value.dtype

    @property
    def device(self) -> torch.device:
        return self._value.device

    def matmul(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return multiply(self._value, vectors)

    def wide_product(self, vectors: Float64[Tensor, "n k"]) -> tuple[Float64[Tensor, "n k"], Float64[Tensor, " n"]]:
        return multiply_wide(self._value, vectors)

    def mirrored(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """K' @ vectors, where K is symmetric up to rounding alone."""
        return self._value.mT @ vectors

    def columns(self, index: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        """Gathers rows, which are contiguous, and uses the symmetry of K."""
        return self._value.index_select(0, index).mT

    def diagonal(self) -> Float[Tensor, " n"]:
        return self._value.diagonal()

    def to_dense(self, dtype: torch.dtype) -> Float[Tensor, "n n"]:
        return self._value.to(dtype=dtype, copy=True)

    def is_finite(self) -> bool:
        """One read of K, no n x n temporary."""
        return bool(self._value.sum(dtype=torch.float64).isfinite())

    def everywhere(self, holds: bool) -> bool:
        return holds
