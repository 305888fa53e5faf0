"""Families that no training mixture may contain: what a model that learned an algorithm must also solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from pretrain.matrices.draws import log_uniform, normal, uniform
from pretrain.matrices.family import MatrixFamily, with_shift


@dataclass(frozen=True)
class Identity(MatrixFamily):
    """The identity times the random scale. O(count n^2). Evaluation only."""

    name: ClassVar[str] = "identity"
    held_out: ClassVar[bool] = True

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        return torch.eye(n, dtype=torch.float64).expand(count, n, n)


@dataclass(frozen=True)
class Diagonal(MatrixFamily):
    """Diagonal, entries log-uniform over a range that is log-uniform in 1..1e8. O(count n^2). Evaluation only."""

    name: ClassVar[str] = "diagonal"
    held_out: ClassVar[bool] = True

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        spread = log_uniform(1.0, 1e8, (count, 1), generator)
        return torch.diag_embed(spread ** -uniform((count, n), generator))


@dataclass(frozen=True)
class Toeplitz(MatrixFamily):
    """Constant along diagonals: T[i, j] = t[|i - j|] + s (i = j). O(count n log n + count n^2). Evaluation only.

    Half are kernels exp(-(|i - j| / l)^p) on an equispaced grid, p uniform in 0.5..2 (positive definite for every p up
    to 2, Schoenberg 1938) and l log-uniform from a tenth of a step to the whole grid; half come from a random positive
    spectral density f (Herglotz): t = sum_w f(w) cos(w k), log f a Gaussian random walk.
    """

    name: ClassVar[str] = "toeplitz"
    held_out: ClassVar[bool] = True

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        lag = torch.arange(n)
        length = log_uniform(0.1, n, (count, 1), generator)
        kernel = (-((lag / length) ** (0.5 + 1.5 * uniform((count, 1), generator)))).exp()
        density = normal((count, 2 * n + 1), generator).cumsum(-1).div(n**0.5).exp()
        correlation = torch.fft.irfft(density, dim=-1)[:, :n]
        first = torch.where(uniform((count, 1), generator) < 0.5, kernel, correlation)
        return with_shift(first[:, (lag[:, None] - lag).abs()], generator)
