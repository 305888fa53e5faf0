"""Random banded matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from pretrain.matrices.draws import first_ones, integers, normal
from pretrain.matrices.family import GramFamily


@dataclass(frozen=True)
class Banded(GramFamily):
    """L L' + s I with a Gaussian lower-triangular L of bandwidth b, which is the product's bandwidth too.

    b is uniform in 1..max(1, largest_fraction n) per matrix; entries vary along the diagonals. O(count n^3).

    :param largest_fraction: the largest bandwidth, relative to n.
    :raises ValueError: if ``largest_fraction`` is not in (0, 1].
    """

    name: ClassVar[str] = "banded"
    largest_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.largest_fraction <= 1:
            raise ValueError(f"largest_fraction must be in (0, 1], got {self.largest_fraction}")

    def largest_bandwidth(self, n: int) -> int:
        """Entries further than this from the diagonal are zero in every matrix of size n."""
        return max(1, int(self.largest_fraction * n))

    def root(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n m"]:
        bandwidth = integers(1, self.largest_bandwidth(n), count, generator)
        offset = torch.arange(n)[:, None] - torch.arange(n)
        inside = first_ones(n, bandwidth + 1)[:, offset.clamp_min(0)] & (offset >= 0)
        return normal((count, n, n), generator) * inside
