"""Chosen spectra in Haar-random bases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pretrain.matrices.draws import in_groups, integers, log_uniform, normal, uniform
from pretrain.matrices.family import LARGEST_CONDITION, MatrixFamily


def _spanning(values: Float64[Tensor, "count n"]) -> Float64[Tensor, "count n"]:
    """Shifted and scaled per row to smallest 0 and largest 1: the condition number is then the one that was drawn."""
    low, high = values.aminmax(dim=-1, keepdim=True)
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def _ranks(count: int, n: int) -> Float64[Tensor, "count n"]:
    return torch.arange(n, dtype=torch.float64).div(max(n - 1, 1)).expand(count, n)


def _exponential(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n"]:
    return _ranks(count, n)


def _polynomial(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n"]:
    # i^-p with p = log(condition) / log(n)
    return torch.arange(1, n + 1, dtype=torch.float64).log().div(math.log(max(n, 2))).expand(count, n)


def _step(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n"]:
    large = integers(1, max(n - 1, 1), count, generator)
    return (torch.arange(n) >= large[:, None]).double()


def _log_uniform(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n"]:
    return _spanning(uniform((count, n), generator))


def _clustered(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n"]:
    clusters = integers(2, 5, count, generator)
    member = (uniform((count, n), generator) * clusters[:, None]).long()
    centres = uniform((count, 5), generator)
    return _spanning(centres.gather(1, member) + 1e-2 * normal((count, n), generator))


def _sigmoid(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n"]:
    middle = 0.2 + 0.6 * uniform((count, 1), generator)
    width = log_uniform(0.02, 0.2, (count, 1), generator)
    return _spanning(torch.sigmoid((_ranks(count, n) - middle) / width))


def _heavy_tail(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n"]:
    # The logarithm of a Pareto variable is exponential; the tail index follows from the condition number.
    return _spanning((1 - uniform((count, n), generator)).log())


LAWS: dict[str, Callable[[int, int, torch.Generator], Float64[Tensor, "count n"]]] = {
    "exponential": _exponential,
    "polynomial": _polynomial,
    "step": _step,
    "log_uniform": _log_uniform,
    "clustered": _clustered,
    "sigmoid": _sigmoid,
    "heavy_tail": _heavy_tail,
}


@dataclass(frozen=True)
class Spectrum(MatrixFamily):
    """Q' diag(lambda) Q, Q Haar-distributed, lambda_i = condition^(-t_i), condition log-uniform in 1..1e8.

    A law draws t, from 0 to 1: the places of the eigenvalues on the logarithmic axis between the largest and the
    smallest. Conditions near 1 come close to the identity: below 1.1 in 0.5 % of the matrices. O(count n^3), a QR
    factorisation each.

    :param laws: names from ``LAWS`` to draw from.
    :raises ValueError: if ``laws`` is empty or has an unknown name.
    """

    name: ClassVar[str] = "spectrum"
    laws: tuple[str, ...] = tuple(LAWS)

    def __post_init__(self) -> None:
        if not self.laws or not set(self.laws) <= set(LAWS):
            raise ValueError(f"laws must be some of {', '.join(LAWS)}, got {self.laws}")

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        def places(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n"]:
            return LAWS[self.laws[option]](len(members), n, generator)

        t = in_groups(integers(0, len(self.laws) - 1, count, generator), places)
        eigenvalues = log_uniform(1.0, LARGEST_CONDITION, (count, 1), generator) ** -t
        basis = haar(count, n, generator)
        return (basis.mT * eigenvalues[:, None, :]) @ basis


def haar(count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
    """Haar-distributed orthogonal matrices: QR of Gaussian ones, with R's diagonal made positive, without which the
    result depends on the signs the factorisation happens to choose (Mezzadri 2007, math-ph/0609050)."""
    q, r = torch.linalg.qr(normal((count, n, n), generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
