"""What every family of matrices is: a name and a seeded sampler of symmetric matrices of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from pretrain.matrices.draws import log_uniform

LARGEST_CONDITION = 1e8
SCALES = (1e-2, 1e2)


class MatrixFamily(ABC):
    """A distribution over symmetric n x n matrices, for every n >= 1.

    ``definite``: all draws are positive definite with condition number at most about 1e8. ``held_out``: for evaluation
    only; a training mixture refuses it. A family writes :meth:`draw`, users call :meth:`sample`.
    """

    name: ClassVar[str]
    definite: ClassVar[bool] = True
    held_out: ClassVar[bool] = False

    def sample(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        """Independent matrices, exactly symmetric, float64 on the CPU, determined by the generator's state.

        The scale of each, which is its mean diagonal entry if the family is definite, is log-uniform in 1e-2..1e2.

        :raises ValueError: if count or n is below 1.
        """
        if count < 1 or n < 1:
            raise ValueError(f"cannot sample {count} matrices of size {n}: count and n must be at least 1")
        matrices = self.draw(count, n, generator)
        # The two products of a pair (i, j) may be rounded differently; their sum is the same from both sides.
        matrices = matrices + matrices.mT
        size = matrices.diagonal(dim1=-2, dim2=-1).mean(-1) if self.definite else 2 * matrices.new_ones(count)
        return with_random_scale(matrices / size[:, None, None], generator)

    @abstractmethod
    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        """Matrices before scaling, symmetric up to rounding; count and n are at least 1. The result may be reused."""


class GramFamily(MatrixFamily):
    """G G' + s I for a random structured root G; s as :func:`shift_level` with the family's ``shift`` range."""

    shift: ClassVar[tuple[float, float]] = (1 / LARGEST_CONDITION, 1e-1)

    @abstractmethod
    def root(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n m"]:
        """The roots G. The first thing drawn: the same seed gives the roots of the matrices of :meth:`sample`."""

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        root = self.root(count, n, generator)
        return with_shift(root @ root.mT, generator, *self.shift)


def with_random_scale(
    matrices: Float64[Tensor, "count n n"], generator: torch.Generator
) -> Float64[Tensor, "count n n"]:
    """The matrices, each times its own log-uniform number in 1e-2..1e2."""
    return matrices * log_uniform(*SCALES, (matrices.shape[0], 1, 1), generator)


def shift_level(
    matrices: Float64[Tensor, "count n n"],
    generator: torch.Generator,
    smallest: float = GramFamily.shift[0],
    largest: float = GramFamily.shift[1],
) -> Float64[Tensor, " count"]:
    """Shifts s = t |A|_inf, t log-uniform in smallest..largest; t itself where A = 0.

    For A positive semi-definite, |A|_inf >= lambda_max, hence cond(A + s I) <= 1 + lambda_max / s <= 1 + 1 / smallest:
    bounded without an eigenvalue. O(n^2).
    """
    norm = matrices.abs().sum(-1).amax(-1)
    return torch.where(norm > 0, norm, 1.0) * log_uniform(smallest, largest, norm.shape, generator)


def with_shift(
    matrices: Float64[Tensor, "count n n"],
    generator: torch.Generator,
    smallest: float = GramFamily.shift[0],
    largest: float = GramFamily.shift[1],
) -> Float64[Tensor, "count n n"]:
    """A + s I with s from :func:`shift_level`, in place: the argument is returned."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(shift_level(matrices, generator, smallest, largest)[:, None])
    return matrices
