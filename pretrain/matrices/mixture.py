"""Mixtures of families: what a training step draws from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pretrain.matrices.banded import Banded
from pretrain.matrices.block_tensor_train import BlockTensorTrain
from pretrain.matrices.draws import in_groups
from pretrain.matrices.family import MatrixFamily
from pretrain.matrices.gaussian import Gaussian
from pretrain.matrices.gp_kernel import GPKernel
from pretrain.matrices.held_out import Diagonal, Identity, Toeplitz
from pretrain.matrices.kronecker import Kronecker
from pretrain.matrices.laplacian import Laplacian
from pretrain.matrices.low_rank import LowRank
from pretrain.matrices.monarch import Monarch
from pretrain.matrices.spectrum import Spectrum
from pretrain.matrices.tensor_train import TensorTrain
from pretrain.matrices.wishart import Wishart

STRUCTURED: tuple[MatrixFamily, ...] = (
    Kronecker(),
    LowRank(),
    TensorTrain(),
    BlockTensorTrain(),
    Monarch(),
    Spectrum(),
    GPKernel(),
    Laplacian(),
    Banded(),
    Wishart(),
)
GAUSSIAN = Gaussian()
HELD_OUT: tuple[MatrixFamily, ...] = (Identity(), Diagonal(), Toeplitz())


@dataclass(frozen=True)
class Mixture:
    """Draws a family per matrix, then the matrices of each family at once. For training: held-out families are refused.

    :param families: what to draw from.
    :param weights: relative frequencies of the families, equal by default.
    :raises ValueError: no family, a held-out family, or weights that are not one finite number >= 0 per family with a
        positive sum.
    """

    families: tuple[MatrixFamily, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError("a mixture needs at least one family, for example those of STRUCTURED")
        if held_out := [family.name for family in self.families if family.held_out]:
            raise ValueError(
                f"{', '.join(held_out)}: held out for evaluation, a model trained on them could not be tested on them; "
                "leave them out of the mixture"
            )
        if self.weights is None:
            return
        if len(self.weights) != len(self.families):
            raise ValueError(f"{len(self.weights)} weights for {len(self.families)} families: give one weight for each")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights) or not sum(self.weights) > 0:
            raise ValueError(f"weights must be finite and at least 0 with a positive sum, got {self.weights}")

    def sample(
        self, count: int, n: int, generator: torch.Generator
    ) -> tuple[Float64[Tensor, "count n n"], Int64[Tensor, " count"]]:
        """Matrices as :meth:`MatrixFamily.sample`, and the position in ``families`` that each one came from.

        :raises ValueError: if count or n is below 1.
        """
        if count < 1 or n < 1:
            raise ValueError(f"cannot sample {count} matrices of size {n}: count and n must be at least 1")
        weights = torch.tensor(self.weights or (1.0,) * len(self.families), dtype=torch.float64)
        choice = torch.multinomial(weights, count, replacement=True, generator=generator)
        matrices = in_groups(choice, lambda family, members: self.families[family].sample(len(members), n, generator))
        return matrices, choice
