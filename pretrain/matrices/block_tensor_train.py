"""Gram matrices of block tensor-train matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pretrain.matrices.draws import first_ones, in_groups, integers, normal
from pretrain.matrices.einsum import continuous_einsum, factorisations
from pretrain.matrices.family import GramFamily


@dataclass(frozen=True)
class BlockTensorTrain(GramFamily):
    """G G' + s I, G a two-core block tensor train: a q x p grid of p x q blocks, each of rank at most r, n = p q.

    G[phi epsilon, gamma alpha] = sum_rho A[alpha gamma phi rho] B[gamma epsilon phi rho] (Qiu et al. 2024, "Compute
    better spent", arXiv 2406.06248). Each matrix draws p, q and r; where n has no factorisation: the first n rows of
    the next larger G. O(count n^3) for the product G G'.

    :param largest_rank: ranks are uniform in 2..largest_rank; rank 1 is Monarch.
    :raises ValueError: if ``largest_rank`` is below 2.
    """

    name: ClassVar[str] = "block_tensor_train"
    largest_rank: int = 4

    def __post_init__(self) -> None:
        if self.largest_rank < 2:
            raise ValueError(f"largest_rank must be at least 2, got {self.largest_rank}")

    def root(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n m"]:
        options = factorisations(n, 2)

        def trains(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n m"]:
            k, (p, q) = len(members), options[option]
            bond = first_ones(self.largest_rank, integers(2, self.largest_rank, k, generator))
            first = normal((k, q, p, 1, q, self.largest_rank), generator) * bond[:, None, None, None, None, :]
            second = normal((k, 1, p, p, q, self.largest_rank), generator)
            return continuous_einsum(first, second)[:, :n]

        return in_groups(integers(0, len(options) - 1, count, generator), trains)
