"""A kernel matrix that is never held: every product makes its tiles anew."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.kernels.bind import bind
from gp_rangeformer.kernels.evaluate import evaluate_columns, evaluate_tile
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.gpu.streamed import streamed
from gp_rangeformer.kernels.matrices.expression_matrix import ExpressionMatrix
from gp_rangeformer.kernels.matrices.share import ALONE, Share
from gp_rangeformer.kernels.tiles import Scratch, tile_size, upper_blocks


class RecomputedKernelMatrix(ExpressionMatrix):
    """K of ``n`` points, of which only the arguments are kept; a
    :class:`~gp_rangeformer.system.kernel_matrix.KernelMatrix`. Memory: a few tiles and O(n D).

    A product evaluates K where compiled code makes a row and multiplies it in one go, else half of K: a tile above the
    diagonal serves its rows and, transposed, its columns. Not for two threads at once: the tiles share their buffers.

    :param arguments: as :func:`~gp_rangeformer.kernels.embedding.embed` returns them.
    :param share: the rows or tiles that are this process's.
    """

    def __init__(
        self,
        expression: Expression,
        arguments: tuple[Tensor, ...],
        n: int,
        dtype: torch.dtype,
        share: Share = ALONE,
    ) -> None:
        super().__init__(expression, arguments, n, dtype)
        self._share = share
        self._size = min(tile_size(self.device), n)
        self._tiles = bind(expression, self._arguments, n, dtype, self._size)
        self._tile = Scratch(self._arguments[0].new_empty(0, dtype=dtype), self._size)
        self._stream = streamed(expression, self._arguments, dtype)

    def matmul(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """K @ vectors, summed over tiles in the dtype of K. 2 n^2 k flops and one evaluation of K,
        or of half of it."""
        rows = self._share.rows(self._n)
        part = self._tiles.multiply(vectors, rows) if self._stream is None else self._stream.matmul(vectors, rows)
        return self._share.sum(self._of_tiles(vectors) if part is None else part)

    def _of_tiles(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        total = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
        for block in self._share.blocks(upper_blocks(self._n, self._size)):
            tile = self._tile.of(block)
            evaluate_tile(self._tiles, block, tile)
            total[block.rows].addmm_(tile, vectors[block.columns])
            if not block.on_diagonal:
                total[block.columns].addmm_(tile.mT, vectors[block.rows])
        return total

    def wide_product(self, vectors: Float64[Tensor, "n k"]) -> tuple[Float64[Tensor, "n k"], Float64[Tensor, " n"]]:
        """K @ vectors and sum_j K_ij^2 from the entries in the dtype of K, every product and sum in float64. One
        evaluation of K, or of half of it by tiles, which also stand in for a streamed kernel."""
        found = self._tiles.multiply_wide(vectors, self._share.rows(self._n))
        product, squares = self._wide_of_tiles(vectors) if found is None else found
        everything = self._share.sum(torch.cat([product, squares.unsqueeze(-1)], dim=1))
        return everything[:, :-1], everything[:, -1]

    def _wide_of_tiles(self, vectors: Float64[Tensor, "n k"]) -> tuple[Float64[Tensor, "n k"], Float64[Tensor, " n"]]:
        total = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
        squares = total.new_zeros(self._n)
        for block in self._share.blocks(upper_blocks(self._n, self._size)):
            tile = self._tile.of(block)
            evaluate_tile(self._tiles, block, tile)
            wide = tile.double()
            total[block.rows].addmm_(wide, vectors[block.columns])
            if not block.on_diagonal:
                total[block.columns].addmm_(wide.mT, vectors[block.rows])
            square = wide.square()
            squares[block.rows] += square.sum(1)
            if not block.on_diagonal:
                squares[block.columns] += square.sum(0)
        return total, squares

    def columns(self, index: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        """K[:, index], in every process."""
        return evaluate_columns(self._expression, self._arguments, self._n, self.dtype, index)

    def is_finite(self) -> bool:
        """Whether the sums of K's rows are: one product."""
        ones = torch.ones(self._n, 1, dtype=self.dtype, device=self.device)
        return bool(self.matmul(ones).sum(dtype=torch.float64).isfinite())

    def everywhere(self, holds: bool) -> bool:
        return self._share.everywhere(holds, self.device)
