"""The kernel matrix, tile by tile: all of it, some rows, or some columns."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gp_rangeformer.allocation.workspace import empty_matrix
from gp_rangeformer.kernels.bind import KernelTiles, bind
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.gpu.device_tiles import copy_transposed
from gp_rangeformer.kernels.tiles import Block, spans, tile_size, upper_blocks


def evaluate(expression: Expression, x: Float[Tensor, "n d"], parameters: tuple[Tensor, ...]) -> Float[Tensor, "n n"]:
    """K of the points ``x`` in their dtype (float32 or float64), without a graph; symmetric to the last bit.

    ``parameters`` as :mod:`~gp_rangeformer.kernels.expression` orders them. Per stationary kernel of D dimensions
    3 n^2 D flops by compiled code, else n^2 (D + 2) and four to ten passes over a cached tile. Memory: K, a few tiles.

    :raises ValueError: if the number of parameters is not the expression's.
    """
    with torch.no_grad():
        return evaluate_arguments(expression, embed(expression, x, parameters), len(x), x.dtype)


def evaluate_arguments(
    expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype
) -> Float[Tensor, "n n"]:
    """The same from :func:`~gp_rangeformer.kernels.embedding.embed`'s result for ``n`` points."""
    size = min(tile_size(arguments[0].device), n)
    kernel = empty_matrix(n, n, dtype, arguments[0].device)
    tiles = bind(expression, arguments, n, dtype, size)
    if not tiles.mirrored:
        everything = slice(0, n)
        tiles.value(Block(everything, everything), kernel)
        return kernel
    for block in upper_blocks(n, size):
        tile = kernel[block.rows, block.columns]
        evaluate_tile(tiles, block, tile)
        if not block.on_diagonal:
            copy_transposed(tile, kernel[block.columns, block.rows])
    return kernel


def evaluate_rows(
    expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype, rows: slice
) -> Float[Tensor, "rows n"]:
    """K[rows], from the same tiles as the whole matrix, bit for bit; without its symmetry, twice the work for an entry.

    :param rows: starts at a multiple of the tile size; ends at one, or at n.
    """
    size = min(tile_size(arguments[0].device), n)
    part = empty_matrix(rows.stop - rows.start, n, dtype, arguments[0].device)
    tiles = bind(expression, arguments, n, dtype, size)
    if not tiles.mirrored:
        tiles.value(Block(rows, slice(0, n)), part)
        return part
    storage = part.new_empty(size * size)
    for own in spans(rows.start, rows.stop, size):
        inside = slice(own.start - rows.start, own.stop - rows.start)
        for other in spans(0, n, size):
            if other.start >= own.start:
                evaluate_tile(tiles, Block(own, other), part[inside, other])
            else:
                mirrored = Block(other, own)
                tile = mirrored.of(storage)
                evaluate_tile(tiles, mirrored, tile)
                copy_transposed(tile, part[inside, other])
    return part


def evaluate_columns(
    expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype, index: Int[Tensor, " r"]
) -> Float[Tensor, "n r"]:
    """K[:, index] to rounding, without the tiles around it: n r (D + 2) flops."""
    device = arguments[0].device
    size, r = min(tile_size(device), n), len(index)
    # The chosen points once more, behind all points: then their columns are a range.
    positions = torch.cat([torch.arange(n, device=device), index])
    tiles = bind(expression, of_points(arguments, positions), n + r, dtype, size)
    found = arguments[0].new_empty(n, r, dtype=dtype)
    if not tiles.mirrored:
        size = n
    for rows in spans(0, n, size):
        for columns in spans(0, r, size):
            tiles.value(Block(rows, slice(n + columns.start, n + columns.stop)), found[rows, columns])
    # A point and its own copy coincide up to the rounding of a product: on the diagonal exactly.
    found[index, torch.arange(r, device=device)] = self_covariance(tiles, found)
    return found


def evaluate_tile(tiles: KernelTiles, block: Block, out: Float[Tensor, "rows columns"]) -> None:
    """One tile on or above the diagonal, as the whole matrix has it; ``out`` may be strided."""
    tiles.value(block, out)
    if block.on_diagonal:
        # The two triangles of z z' may differ in the last bit.
        mirrored = out.triu(1).mT
        out.triu_().add_(mirrored)


def self_covariance(tiles: KernelTiles, like: Tensor) -> Float[Tensor, ""]:
    """k(x, x), which stationary kernels and constants have in common for all points; dtype and device of ``like``."""
    tile = like.new_empty(1, 1)
    tiles.value(Block(slice(0, 1), slice(0, 1)), tile)
    return tile[0, 0]


def of_points(arguments: tuple[Tensor, ...], positions: Int[Tensor, "*p"] | slice) -> tuple[Tensor, ...]:
    """The arguments of the kernel matrix of some of the points, in any order: coordinates are what has two axes."""
    return tuple(argument[positions] if argument.dim() == 2 else argument for argument in arguments)
