"""Gram matrices of Monarch matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pretrain.matrices.draws import in_groups, integers, normal
from pretrain.matrices.einsum import continuous_einsum, factorisations
from pretrain.matrices.family import GramFamily


@dataclass(frozen=True)
class Monarch(GramFamily):
    """G G' + s I, G = L P R with Gaussian block-diagonal L and R and the permutation P that interleaves their blocks.

    Dao et al. 2022, "Monarch: expressive structured matrices" (arXiv 2204.00595). Each matrix draws its factorisation
    n = p q; where n has none: the first n rows of the next larger G. O(count n^3) for the product G G'.
    """

    name: ClassVar[str] = "monarch"

    def root(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n m"]:
        options = factorisations(n, 2)

        def products(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n m"]:
            k, (p, q) = len(members), options[option]
            return monarch_matrix(normal((k, q, p, p), generator), normal((k, p, q, q), generator))[:, :n]

        return in_groups(integers(0, len(options) - 1, count, generator), products)


def monarch_matrix(
    left: Float64[Tensor, "count q p p"], right: Float64[Tensor, "count p q q"]
) -> Float64[Tensor, "count p*q p*q"]:
    """blockdiag(left) P blockdiag(right), P moving entry (block gamma, place phi) to (block phi, place gamma).

    Entry [phi epsilon, gamma alpha] is left[phi, epsilon, gamma] right[gamma, phi, alpha]: the continuous einsum with
    beta = delta = rho = 1. O(count (p q)^2).
    """
    first = right.permute(0, 3, 1, 2)[:, :, :, None, :, None]  # alpha gamma . phi .
    second = left.permute(0, 3, 2, 1)[:, None, :, :, :, None]  # . gamma epsilon phi .
    return continuous_einsum(first, second)
