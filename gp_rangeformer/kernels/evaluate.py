"""The kernel matrix, tile by tile."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.nodes import bind
from gp_rangeformer.kernels.tiles import tile_size, upper_blocks


def evaluate(expression: Expression, x: Float[Tensor, "n d"], parameters: tuple[Tensor, ...]) -> Float[Tensor, "n n"]:
    """K of the points ``x`` in their dtype (float32 or float64), without a graph; symmetric to the last bit.

    ``parameters`` as :mod:`~gp_rangeformer.kernels.expression` orders them. n^2 (D + 2) flops and four to ten passes
    over a cached tile per stationary kernel, D its number of dimensions; memory K and a few tiles.

    :raises ValueError: if the number of parameters is not the expression's.
    """
    with torch.no_grad():
        return evaluate_arguments(expression, embed(expression, x, parameters), x)


def evaluate_arguments(
    expression: Expression, arguments: tuple[Tensor, ...], x: Float[Tensor, "n d"]
) -> Float[Tensor, "n n"]:
    """The same from :func:`~gp_rangeformer.kernels.embedding.embed`'s result; ``x`` gives size, dtype and device."""
    n = len(x)
    kernel = x.new_empty(n, n)
    size = min(tile_size(x.device), n)
    root = bind(expression, arguments, x.dtype, size)
    for block in upper_blocks(n, size):
        tile = kernel[block.rows, block.columns]
        root.value(block, tile)
        if block.on_diagonal:
            # The two triangles of z z' may differ in the last bit.
            tile.copy_(tile.triu() + tile.triu(1).mT)
        else:
            kernel[block.columns, block.rows].copy_(tile.mT)
    return kernel
