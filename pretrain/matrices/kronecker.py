"""Kronecker products of two or three random positive definite factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pretrain.matrices.draws import in_groups, integers, normal
from pretrain.matrices.einsum import continuous_einsum, factorisations
from pretrain.matrices.family import LARGEST_CONDITION, MatrixFamily, with_shift


@dataclass(frozen=True)
class Kronecker(MatrixFamily):
    """A_1 x .. x A_k, each A_i = G G' + s I with Gaussian G; each matrix draws k and its own factor sizes.

    Where n has no factorisation: the leading n x n block of the next larger product, whose condition number bounds the
    block's. O(count n^2).

    :param factors: the values of k to draw from.
    :raises ValueError: if ``factors`` is empty or contains a number below 2.
    """

    name: ClassVar[str] = "kronecker"
    factors: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) < 2:
            raise ValueError(f"a Kronecker product needs at least 2 factors, got factors={self.factors}")

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        options = [sizes for parts in self.factors for sizes in factorisations(n, parts)]

        def products(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n n"]:
            factors = [
                _factor(len(members), size, len(options[option]), generator)[:, :, None, :, None, None]
                for size in options[option]
            ]
            product, *others = factors
            for other in others:
                product = continuous_einsum(product, other)[:, :, None, :, None, None]
            return product[:, :n, 0, :n, 0, 0]

        return in_groups(integers(0, len(options) - 1, count, generator), products)


def _factor(count: int, size: int, parts: int, generator: torch.Generator) -> Float64[Tensor, "count size size"]:
    """Positive definite, with condition number at most LARGEST_CONDITION^(1/parts): those of the factors multiply."""
    root = normal((count, size, size), generator)
    return with_shift(root @ root.mT, generator, smallest=LARGEST_CONDITION ** (-1 / parts))
