"""Products of a dense matrix with the block of a training step, by the compiled library where that is the fastest."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.compiler import native_library

# Of native/product.cpp: one sweep over the matrix with 32 columns in registers, and a few by dot products. For other
# widths the library of PyTorch is as fast or faster.
_COLUMNS, _FURTHER = 32, 2
_SMALLEST = 1500  # rows; below, packing costs what the product saves


def multiply(matrix: Float[Tensor, "n n"], vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """matrix @ vectors, summed in their dtype, with the rounding of :func:`torch.matmul` or less."""
    n, k = vectors.shape
    fits = _COLUMNS <= k <= _COLUMNS + _FURTHER and n >= _SMALLEST
    plain = matrix.device.type == "cpu" and matrix.dtype in (torch.float32, torch.float64) and matrix.stride(1) == 1
    library = native_library() if fits and plain and settings.compiled_kernels.on() else None
    if library is None or vectors.dtype != matrix.dtype or vectors.device != matrix.device:
        return matrix @ vectors
    out = torch.empty(n, k, dtype=matrix.dtype)
    packed, further = vectors[:, :_COLUMNS].contiguous(), vectors[:, _COLUMNS:].mT.contiguous()
    function = library.multiply_float if matrix.dtype == torch.float32 else library.multiply_double
    function(
        matrix.data_ptr(), n, matrix.stride(0), packed.data_ptr(), further.data_ptr(), k - _COLUMNS, out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out
