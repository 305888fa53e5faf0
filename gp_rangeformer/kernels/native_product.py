"""Products with a thin block by the compiled library: of a dense matrix where that is the fastest, and of a kernel
matrix that is made on the way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.compiler import native_library

# Of native/product.cpp: panels of 32 columns are summed in registers, a few more as dot products.
_PANEL, _FURTHER = 32, 4
# One sweep with one panel; for other widths the library of PyTorch is as fast or faster.
_DENSE_WIDTHS = range(32, 35)
_DENSE_ROWS = 1500  # below, packing costs what the product saves


class PackedBlock(NamedTuple):
    """Columns as the library reads them; zero columns fill the last panel.

    ``packed``: panels x n x 32. ``further``: k x n.
    """

    packed: Float[Tensor, "panels n 32"]
    further: Float[Tensor, "k n"]

    @property
    def width(self) -> int:
        return self.packed.shape[0] * _PANEL + len(self.further)

    def pointers(self) -> tuple[int, int, int, int]:
        """Arguments of the library's functions; valid while the block lives."""
        return self.packed.data_ptr(), len(self.packed), self.further.data_ptr(), len(self.further)


def pack(vectors: Float[Tensor, "n k"]) -> PackedBlock:
    """A copy of the columns. At most four that fill no panel are further ones."""
    n, k = vectors.shape
    rest = k % _PANEL
    whole = k - rest if rest <= _FURTHER else k
    panels = -(-whole // _PANEL)
    packed = vectors.new_zeros(panels, n, _PANEL)
    for panel, start in enumerate(range(0, whole, _PANEL)):
        columns = vectors[:, start : min(start + _PANEL, whole)]
        packed[panel, :, : columns.shape[1]] = columns
    return PackedBlock(packed, vectors[:, whole:].mT.contiguous())


def multiply(matrix: Float[Tensor, "rows n"], vectors: Float[Tensor, "n k"]) -> Float[Tensor, "rows k"]:
    """matrix @ vectors, summed in their dtype, with the rounding of :func:`torch.matmul` or less."""
    rows, n = matrix.shape
    k = vectors.shape[1]
    fits = k in _DENSE_WIDTHS and rows >= _DENSE_ROWS and matrix.device.type == "cpu" and matrix.stride(1) == 1
    alike = len(vectors) == n and vectors.dtype == matrix.dtype and vectors.device == matrix.device
    known = matrix.dtype in (torch.float32, torch.float64)
    library = native_library() if fits and alike and known and settings.compiled_kernels.on() else None
    if library is None:
        return matrix @ vectors
    block = pack(vectors)
    out = vectors.new_empty(rows, block.width)
    function = library.multiply_dense_float if matrix.dtype == torch.float32 else library.multiply_dense_double
    function(matrix.data_ptr(), rows, n, matrix.stride(0), *block.pointers(), out.data_ptr(), torch.get_num_threads())
    return out[:, :k]
