"""How an n x n matrix is cut into tiles."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Rows and columns of a tile. By tensor operations on a CPU the buffers of one kernel stay in a level-2 cache of 2 MiB:
# a Matern-3/2 matrix of n = 4000, written to memory already in use, takes 37 ms with tiles of 128, 24 with 256, 26 with
# 384 and 25 with 512 (float32, one thread; 51, 48, 52, 55 ms in float64). Threads share a tile, and wait for each other
# after every operation on it: two of them take 208 ms with tiles of 256 beside another process, 37 with 512 and 55 with
# 1024 (new memory). Compiled code needs tiles for gradients alone, whose weight they hold, and does not mind: n = 8000,
# two threads, 56, 51, 53 ms with 256, 512, 1024; so they are twice as wide there, for a quarter of the waiting. On an
# H100, n = 32,000, K takes 12 ms with tiles of 2048, 10 with 4096 and 12 with 8192, and a gradient from tiles 41, 14
# and 14.
_ONE_THREAD, _CUDA = 256, 4096


class Block(NamedTuple):
    """The rows and columns of a tile, as half-open ranges."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def on_diagonal(self) -> bool:
        return self.rows.start == self.columns.start

    def of(self, storage: Float[Tensor, " size"]) -> Float[Tensor, "rows columns"]:
        """A contiguous tile of this shape in a flat buffer."""
        rows, columns = self.shape
        return storage[: rows * columns].view(rows, columns)


class Scratch:
    """Memory of one tile of at most ``size`` x ``size``, taken when it is first written to: not every way to compute
    needs every buffer.

    :param like: gives dtype and device.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self._like, self._numbers = like, size * size
        self._storage: Tensor | None = None

    def of(self, block: Block) -> Float[Tensor, "rows columns"]:
        """A contiguous tile of the shape of ``block``; the same memory every time."""
        if self._storage is None:
            self._storage = self._like.new_empty(self._numbers)
        return block.of(self._storage)


def tile_size(device: torch.device, *, compiled: bool = False) -> int:
    """Rows and columns of a tile on ``device``.

    :param compiled: for a gradient by compiled code.
    """
    if device.type != "cpu":
        return _CUDA
    # The area grows with the threads; sizes stay powers of two.
    size = _ONE_THREAD * 2 ** math.ceil(math.log2(torch.get_num_threads()) / 2)
    return 2 * size if compiled else size


def upper_blocks(n: int, size: int) -> list[Block]:
    """The tiles of an n x n matrix on and above its diagonal; those on the diagonal are square."""
    ranges = spans(0, n, size)
    return [Block(rows, columns) for index, rows in enumerate(ranges) for columns in ranges[index:]]


def spans(start: int, stop: int, size: int) -> list[slice]:
    """The range cut into pieces of at most ``size``."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
