"""Gram matrices of tensor-train matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from pretrain.matrices.draws import first_ones, in_groups, integers, normal
from pretrain.matrices.einsum import continuous_einsum, factorisations
from pretrain.matrices.family import GramFamily


@dataclass(frozen=True)
class TensorTrain(GramFamily):
    """G G' + s I, G a tensor-train matrix of Gaussian cores; each matrix draws its rank, core number and core sizes.

    Where n has no factorisation: the first n rows of the next larger G. O(count n^3) for the product G G'.

    :param cores: the numbers of cores to draw from.
    :param largest_rank: ranks are uniform in 2..largest_rank; rank 1 would be a Kronecker product.
    :raises ValueError: if ``cores`` is empty or contains a number below 2, or ``largest_rank`` is below 2.
    """

    name: ClassVar[str] = "tensor_train"
    cores: tuple[int, ...] = (2, 3)
    largest_rank: int = 4

    def __post_init__(self) -> None:
        if not self.cores or min(self.cores) < 2:
            raise ValueError(f"a tensor train needs at least 2 cores, got cores={self.cores}")
        if self.largest_rank < 2:
            raise ValueError(f"largest_rank must be at least 2, got {self.largest_rank}")

    def root(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n m"]:
        options = [sizes for parts in self.cores for sizes in factorisations(n, parts)]
        # Two and three cores may need different sizes above n; columns of zeros do not change G G'.
        width = max(math.prod(sizes) for sizes in options)

        def trains(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n m"]:
            k, sizes = len(members), options[option]
            bond = first_ones(self.largest_rank, integers(2, self.largest_rank, k, generator))
            cores = []
            for position, size in enumerate(sizes):
                left = 1 if position == 0 else self.largest_rank
                right = 1 if position == len(sizes) - 1 else self.largest_rank
                core = normal((k, left, size, size, right), generator)
                cores.append(core if right == 1 else core * bond[:, None, None, None, :])
            return pad(tensor_train_matrix(cores)[:, :n], (0, width - math.prod(sizes)))

        return in_groups(integers(0, len(options) - 1, count, generator), trains)


def tensor_train_matrix(
    cores: Sequence[Float64[Tensor, "count left rows columns right"]],
) -> Float64[Tensor, "count m k"]:
    """G[i_1..i_k, j_1..j_k] = sum over bonds of prod_t cores[t][:, b_(t-1), i_t, j_t, b_t], b_0 and b_k of length 1.

    Oseledets 2011, "Tensor-train decomposition". Contracted from the last core, one continuous einsum per bond, with
    the open bond on the left carried as part of the row axis delta.
    """
    tail = cores[-1][..., 0]  # (count, left, rows, columns)
    for core in reversed(cores[:-1]):
        count, left, rows, columns, bond = core.shape
        first = core.permute(0, 3, 1, 2, 4).reshape(count, columns, 1, left * rows, 1, bond)
        second = tail.permute(0, 3, 2, 1)[:, :, None, :, None, :]
        tail = continuous_einsum(first, second).reshape(count, left, rows * tail.shape[2], columns * tail.shape[3])
    return tail[:, 0]
