"""Squared distances of many points by one product, to rounding."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.tensor.profiles import SMALLEST
from gp_rangeformer.kernels.tiles import Block, Scratch


class SquaredDistances:
    """Tiles of |z_i - z_j|^2, of at least ``SMALLEST``, and that on the diagonal and of points that coincide.

    The product is float64 for float32 tiles too: in float32 neighbours many length-scales from the middle would be off
    by eps |z|^2, thousands of times the rounding of a kernel's entry, and certificates rest on that. (A third more time
    for a tile of Matern-5/2, n = 256, 8 dimensions, one thread.)

    :param dtype: of the tiles.
    :param size: the most rows and columns of one.
    """

    def __init__(self, points: Float64[Tensor, "n d"], dtype: torch.dtype, size: int) -> None:
        squares = points.square().sum(-1, keepdim=True)
        ones = torch.ones_like(squares)
        # [-2 z, |z|^2, 1] . [z', 1, |z'|^2] = |z - z'|^2. The norms last, as in GPyTorch: first they cost up to three
        # times the rounding error (measured, d = 8 to 50).
        self._left = torch.cat([-2 * points, squares, ones], dim=-1)
        self._right = torch.cat([points.mT, ones.mT, squares.mT])
        # A number of the tiles' dtype: infinite distances are none of coincident points.
        coincident = coincident_square(squares, points.shape[1]).clamp(SMALLEST, torch.finfo(dtype).max)
        self._coincident = float(coincident) if points.device.type == "cpu" else coincident
        self._wide = None if dtype == torch.float64 else Scratch(points.new_empty(0), size)

    def write(self, block: Block, out: Float[Tensor, "rows columns"]) -> None:
        """One tile; ``out`` is contiguous."""
        wide = out if self._wide is None else self._wide.of(block)
        torch.mm(self._left[block.rows], self._right[:, block.columns], out=wide)
        if wide is not out:
            out.copy_(wide)
        if isinstance(self._coincident, float):
            torch.threshold_(out, self._coincident, SMALLEST)
        else:  # three times the passes, and nobody waits for the number
            out.masked_fill_(out <= self._coincident, SMALLEST)
        if block.on_diagonal:
            out.diagonal().fill_(SMALLEST)

    def widened(self, block: Block, tile: Float[Tensor, "rows columns"]) -> Float64[Tensor, "rows columns"]:
        """``tile`` in float64, until the next is written."""
        return tile if self._wide is None else self._wide.of(block).copy_(tile)


def coincident_square(squares: Float64[Tensor, "*n"], dimensions: int) -> Float64[Tensor, ""]:
    """Below it a squared distance that is the difference of squared norms, ``squares`` in float64, may be rounding
    alone: points so near are taken for coincident. Else duplicates would be off by its root.

    Rounding of ``dimensions`` products and their sum: measured are at most 1.1 units times the root of their number
    and 2 (1 to 300 dimensions), twice that is counted.
    """
    units = 2 * (1.1 * dimensions**0.5 + 2)
    return units * torch.finfo(torch.float64).eps * squares.detach().max()
