"""Who computes the tiles of an expression: the compiled library on a CPU, where there is one, or tensor operations."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.native.tiles import NativeTiles
from gp_rangeformer.kernels.tensor.nodes import TensorTiles
from gp_rangeformer.kernels.tiles import Block


@runtime_checkable
class KernelTiles(Protocol):
    """An expression with its arguments.

    ``mirrored``: whether a tile below the diagonal is better copied from its mirror image than computed.
    """

    mirrored: bool

    def value(self, block: Block, out: Tensor) -> None:
        """Write the tile; ``out`` may have distant rows."""
        ...

    def pull(self, block: Block, weight: Tensor) -> None:
        """Add the tile's part of d sum(weight * tile). ``weight`` is left as it is."""
        ...

    def multiply(self, vectors: Tensor, rows: slice | None = None) -> Tensor | None:
        """K @ vectors, n x k, with zeros outside ``rows`` (None for all of them); or None: tile by tile then."""
        ...

    def multiply_wide(self, vectors: Tensor, rows: slice | None = None) -> tuple[Tensor, Tensor] | None:
        """K @ vectors and sum_j K_ij^2, both in float64, from ``vectors`` in float64; else the same."""
        ...

    def gradients(self) -> list[Tensor]:
        """The sums over all tiles, for every argument, in float64."""
        ...


def bind(expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype, size: int) -> KernelTiles:
    """Tiles of at most ``size`` x ``size`` in ``dtype``, of ``n`` points whose ``arguments`` are as
    :func:`~gp_rangeformer.kernels.embedding.embed` returns them. Tiles that need no mirror image may have any size."""
    library = library_on(arguments[0].device)
    if library is not None:
        return NativeTiles(library, expression, arguments, n, dtype)
    return TensorTiles(expression, arguments, dtype, size)
