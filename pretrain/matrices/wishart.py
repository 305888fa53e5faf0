"""Sample covariance matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from pretrain.matrices.draws import first_ones, integers, normal
from pretrain.matrices.family import LARGEST_CONDITION, GramFamily


@dataclass(frozen=True)
class Wishart(GramFamily):
    """G G' / m + s I, G Gaussian n x m with m uniform in n..4n per matrix, s tiny: it only bounds the condition number.

    O(count n^3); every matrix is drawn with 4n columns, of which those beyond m are set to zero.
    """

    name: ClassVar[str] = "wishart"
    shift: ClassVar[tuple[float, float]] = (1 / LARGEST_CONDITION, 1 / LARGEST_CONDITION)

    def root(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n m"]:
        samples = integers(n, 4 * n, count, generator)
        columns = first_ones(4 * n, samples) / samples[:, None].sqrt()
        return normal((count, n, 4 * n), generator) * columns[:, None, :]
