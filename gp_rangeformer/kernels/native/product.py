"""Products with a thin block by the compiled library: of a dense matrix where that is the fastest, of a kernel matrix
that is made on the way, and in float64 whatever the matrix is held in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.gpu import operations
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.native.interface import PANEL, function_for
from gp_rangeformer.kernels.tiles import spans

# Panels of 32 columns are summed in registers, so many more as dot products: fewer than would pay for a panel.
_FURTHER = 4
# One sweep with one panel; for other widths the library of PyTorch is as fast or faster.
_DENSE_WIDTHS = range(32, 35)
_DENSE_ROWS = 1500  # below, packing costs what the product saves
# Numbers of a matrix that tensor operations widen at a time: a level-2 cache of a CPU; on a GPU, enough to occupy it.
_WIDENED, _WIDENED_CUDA = 2**18, 2**25

_WIDE_COLUMNS = 16  # of a product in float64 that is made as the matrix is read, on a GPU


class PackedBlock(NamedTuple):
    """Columns as the library reads them; zero columns fill the last panel.

    ``packed``: panels x n x 32. ``further``: k x n.
    """

    packed: Float[Tensor, "panels n 32"]
    further: Float[Tensor, "k n"]

    @property
    def width(self) -> int:
        return self.packed.shape[0] * PANEL + len(self.further)

    def pointers(self) -> tuple[int, int, int, int]:
        """Arguments of the library's functions; valid while the block lives."""
        return self.packed.data_ptr(), len(self.packed), self.further.data_ptr(), len(self.further)


def pack(vectors: Float[Tensor, "n k"]) -> PackedBlock:
    """A copy of the columns. At most four that fill no panel are further ones."""
    n, k = vectors.shape
    rest = k % PANEL
    whole = k - rest if rest <= _FURTHER else k
    panels = -(-whole // PANEL)
    packed = vectors.new_zeros(panels, n, PANEL)
    for panel, start in enumerate(range(0, whole, PANEL)):
        columns = vectors[:, start : min(start + PANEL, whole)]
        packed[panel, :, : columns.shape[1]] = columns
    return PackedBlock(packed, vectors[:, whole:].mT.contiguous())


def multiply(matrix: Float[Tensor, "rows n"], vectors: Float[Tensor, "n k"]) -> Float[Tensor, "rows k"]:
    """matrix @ vectors, summed in their dtype, with the rounding of :func:`torch.matmul` or less."""
    rows, n = matrix.shape
    k = vectors.shape[1]
    fits = k in _DENSE_WIDTHS and rows >= _DENSE_ROWS and matrix.stride(1) == 1
    alike = len(vectors) == n and vectors.dtype == matrix.dtype and vectors.device == matrix.device
    known = matrix.dtype in (torch.float32, torch.float64)
    library = library_on(matrix.device) if fits and alike and known else None
    if library is None:
        return matrix @ vectors
    block = pack(vectors)
    out = vectors.new_empty(rows, block.width)
    function = function_for(library, "multiply_dense", matrix.dtype)
    function(matrix.data_ptr(), rows, n, matrix.stride(0), *block.pointers(), out.data_ptr(), torch.get_num_threads())
    return out[:, :k]


def multiply_wide(
    matrix: Float[Tensor, "rows n"], vectors: Float64[Tensor, "n k"]
) -> tuple[Float64[Tensor, "rows k"], Float64[Tensor, " rows"]]:
    """matrix @ vectors and sum_j matrix_ij^2, every product and sum in float64: the entries of a float32 matrix are
    converted exactly. Componentwise |error| <= n u / (1 - n u) sum_j |matrix_ij| |vectors_jk|, u = 2^-53.

    One read of the matrix for few columns, no copy of it (by tensor operations, of a few rows at a time).
    """
    rows, n = matrix.shape
    fits = vectors.device == matrix.device and (n == 1 or matrix.stride(1) == 1)
    known = matrix.dtype in (torch.float32, torch.float64)
    away, few = matrix.device.type != "cpu", vectors.shape[1] <= _WIDE_COLUMNS
    if away and fits and known and few and operations.answers_on(matrix.device):
        found = torch.ops.gp_rangeformer.wide_product(matrix, vectors)
        return found[:, :-1], found[:, -1]
    library = library_on(matrix.device) if fits and known else None
    if library is None:
        return _multiply_widened(matrix, vectors)
    out, squares = vectors.new_empty(rows, vectors.shape[1]), vectors.new_empty(rows)
    columns, threads = vectors.mT.contiguous(), torch.get_num_threads()
    function = function_for(library, "multiply_wide_dense", matrix.dtype)
    function(
        matrix.data_ptr(), rows, n, matrix.stride(0), columns.data_ptr(), len(columns), out.data_ptr(),
        squares.data_ptr(), threads,
    )  # fmt: skip
    return out, squares


def _wide_product(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Both in one tensor: the products, and the squares as its last column."""
    product, squares = _multiply_widened(matrix, vectors)
    return torch.cat([product, squares.unsqueeze(1)], dim=1)


def _multiply_widened(
    matrix: Float[Tensor, "rows n"], vectors: Float64[Tensor, "n k"]
) -> tuple[Float64[Tensor, "rows k"], Float64[Tensor, " rows"]]:
    rows, n = matrix.shape
    out, squares = vectors.new_empty(rows, vectors.shape[1]), vectors.new_empty(rows)
    for piece in spans(0, rows, max(1, (_WIDENED if matrix.device.type == "cpu" else _WIDENED_CUDA) // n)):
        wide = matrix[piece].double()
        out[piece] = wide @ vectors
        squares[piece] = wide.square().sum(1)
    return out, squares


def _example() -> operations.Arguments:
    numbers = torch.randn(35, 300, generator=torch.Generator().manual_seed(0), device="cpu")
    return [numbers[2:], numbers[:2].mT.double()]


operations.register("wide_product(Tensor matrix, Tensor vectors)", _wide_product, _example)
