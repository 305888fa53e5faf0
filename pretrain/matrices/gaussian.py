"""Random Gaussian symmetric matrices: what earlier models were trained on, kept for the ablation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from pretrain.matrices.draws import normal
from pretrain.matrices.family import MatrixFamily


@dataclass(frozen=True)
class Gaussian(MatrixFamily):
    """(G + G') / sqrt(2n), G of independent N(0, 1): symmetric and indefinite, eigenvalues near the semicircle on
    [-2, 2] before scaling. O(count n^2)."""

    name: ClassVar[str] = "gaussian"
    definite: ClassVar[bool] = False

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        square = normal((count, n, n), generator)
        return (square + square.mT) / math.sqrt(2 * n)
