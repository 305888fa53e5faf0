"""Low rank plus a positive diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from pretrain.matrices.draws import first_ones, integers, log_uniform, normal, uniform
from pretrain.matrices.family import MatrixFamily, shift_level


@dataclass(frozen=True)
class LowRank(MatrixFamily):
    """U U' + D, U Gaussian with r columns of log-uniform lengths over two decades, D positive and diagonal.

    In about half of the matrices D is constant, in the others its entries spread log-uniformly over one decade. The
    rank r is uniform in 1..max(1, largest_fraction n). O(count n^2 r).

    :param largest_fraction: the largest rank, relative to n.
    :raises ValueError: if ``largest_fraction`` is not in (0, 1].
    """

    name: ClassVar[str] = "low_rank"
    largest_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.largest_fraction <= 1:
            raise ValueError(f"largest_fraction must be in (0, 1], got {self.largest_fraction}")

    def largest_rank(self, n: int) -> int:
        """The largest rank that U U' may have at size n."""
        return max(1, int(self.largest_fraction * n))

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        largest = self.largest_rank(n)
        columns = first_ones(largest, integers(1, largest, count, generator)) * log_uniform(
            1e-1, 1e1, (count, largest), generator
        )
        root = normal((count, n, largest), generator) * columns[:, None, :]
        matrices = root @ root.mT
        varying = uniform((count, 1), generator) < 0.5
        spread = 10 ** (varying * uniform((count, n), generator))
        matrices.diagonal(dim1=-2, dim2=-1).add_(shift_level(matrices, generator)[:, None] * spread)
        return matrices
