"""Points given a few earlier ones, by the compiled library; and products with the sparse matrix that comes out."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from gp_rangeformer.kernels.native.interface import function_for
from gp_rangeformer.kernels.native.tiles import NativeTiles

MOST_NEIGHBOURS = 255  # a block's rows are made in one go


def nearest(tiles: NativeTiles, count: int, first: int) -> Int32[Tensor, "m k"]:
    """As :meth:`~gp_rangeformer.kernels.conditionals.OrderedPoints.nearest`."""
    out = torch.empty(tiles.size - first, count, dtype=torch.int32, device="cpu")
    function = function_for(tiles.library, "nearest", tiles.dtype)
    function(tiles.program, first, count, out.data_ptr(), torch.get_num_threads())
    return out


def condition(
    tiles: NativeTiles,
    neighbours: Int32[Tensor, "m k"],
    explained: Float[Tensor, "n r"],
    noise: Float[Tensor, " n"],
    first: int,
) -> tuple[Float[Tensor, "m k1"], Float64[Tensor, " m"]]:
    """As :meth:`~gp_rangeformer.kernels.conditionals.OrderedPoints.condition`."""
    m, k = neighbours.shape
    explained, noise = explained.to(tiles.dtype).contiguous(), noise.to(tiles.dtype).contiguous()
    rows = torch.empty(m, k + 1, dtype=tiles.dtype, device="cpu")
    variances = torch.empty(m, dtype=torch.float64, device="cpu")
    function = function_for(tiles.library, "condition", tiles.dtype)
    function(
        tiles.program, first, neighbours.data_ptr(), k, explained.data_ptr(), explained.shape[1], noise.data_ptr(),
        rows.data_ptr(), variances.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return rows, variances


def pull_conditions(tiles: NativeTiles, neighbours: Int32[Tensor, "n k"], rows: Float[Tensor, "n k1"]) -> None:
    """Add d sum_i g_i K g_i' to the tiles' gradients, for rows g_i as :func:`condition` returns them. n k^2 / 2
    derivatives of entries."""
    function = function_for(tiles.library, "pull_conditions", tiles.dtype)
    rows = rows.to(tiles.dtype).contiguous()
    function(tiles.program, neighbours.data_ptr(), neighbours.shape[1], rows.data_ptr(), torch.get_num_threads())


def sparse_solve(
    library: ctypes.CDLL,
    starts: Int64[Tensor, " rows1"],
    columns: Int32[Tensor, " q"],
    numbers: Float[Tensor, " q"],
    vectors: Float[Tensor, "n m"],
) -> Float[Tensor, "n m"]:
    """G^-1 vectors of a lower triangular G, in rows that end with their diagonal number. 2 q m flops."""
    out = vectors.clone(memory_format=torch.contiguous_format)
    function = function_for(library, "sparse_solve", out.dtype)
    function(
        starts.data_ptr(), columns.data_ptr(), numbers.data_ptr(), len(starts) - 1, out.data_ptr(), out.shape[1],
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def sparse_product(
    library: ctypes.CDLL,
    starts: Int64[Tensor, " rows1"],
    columns: Int32[Tensor, " q"],
    numbers: Float[Tensor, " q"],
    vectors: Float[Tensor, "n m"],
) -> Float[Tensor, "rows m"]:
    """The product of a sparse matrix in rows with a thin block, summed in their dtype. 2 q m flops."""
    rows, vectors = len(starts) - 1, vectors.contiguous()
    out = vectors.new_empty(rows, vectors.shape[1])
    function = function_for(library, "sparse", vectors.dtype)
    function(
        starts.data_ptr(), columns.data_ptr(), numbers.data_ptr(), rows, vectors.data_ptr(), vectors.shape[1],
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out
