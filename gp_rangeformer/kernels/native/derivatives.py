"""Products of a vector with derivatives of K, by the compiled library in one pass over pairs of points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.native.interface import function_for
from gp_rangeformer.kernels.native.tiles import NativeTiles

# (argument, coordinate, what moves with it: n numbers, or None for the coordinate itself)
Moved = tuple[int, int, Tensor | None]


def derive(
    tiles: NativeTiles, moved: Sequence[Moved], vector: Float[Tensor, " n"]
) -> tuple[Float64[Tensor, "p n"], Float64[Tensor, "nodes n"]]:
    """sum_j dK_ij/dq_ij (z_ic - z_jc) (w_i - w_j) vector_j for every moved coordinate c of squared distances q, and
    sum_j dK_ij/dp vector_j for the parameter p of every node (zero where it has none). Stretches of 256 terms are
    summed in the dtype of the tiles, those in float64. One evaluation of K, and 3 n^2 flops for every coordinate.
    """
    count, n, dtype = len(moved), tiles.size, tiles.dtype
    partners = [with_it.to(dtype) for _, _, with_it in moved if with_it is not None]
    rows = iter(range(len(partners)))
    nodes = [tiles.argument_nodes[argument] for argument, _, _ in moved]
    coordinates = [coordinate for _, coordinate, _ in moved]
    places = [-1 if with_it is None else next(rows) for _, _, with_it in moved]
    table = torch.tensor([nodes, coordinates, places], dtype=torch.int32, device="cpu").reshape(3, count)
    stacked = torch.stack(partners) if partners else vector.new_empty(0)
    vector = vector.to(dtype).contiguous()
    out = torch.empty(count + tiles.node_count, n, dtype=torch.float64, device="cpu")
    function = function_for(tiles.library, "derive", dtype)
    function(
        tiles.program, *(row.data_ptr() for row in table), count, stacked.data_ptr(), vector.data_ptr(), out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out[:count], out[count:]
