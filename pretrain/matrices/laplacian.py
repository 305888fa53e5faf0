"""Laplacians of random weighted graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pretrain.matrices.draws import in_groups, integers, log_uniform, uniform
from pretrain.matrices.family import MatrixFamily, with_shift

GRAPHS = ("geometric", "erdos_renyi", "preferential")


@dataclass(frozen=True)
class Laplacian(MatrixFamily):
    """D - W + s I of a weighted graph of mean degree about 2 to 8, weights log-uniform in 0.1..10, D = diag(W 1).

    * geometric: uniform points of the unit square, linked below a distance;
    * erdos_renyi: every pair with the same probability;
    * preferential: preferential attachment, approximated by the Chung-Lu model, in which pair (i, j) is linked with
      probability min(1, w_i w_j / sum w), independently, and w follows a power law: the same degree law (exponent 2.2
      to 3.2), without the loop over vertices.

    A vertex without neighbours is linked to its likeliest one: the matrix is never diagonal for n >= 2. O(count n^2).

    :param graphs: names from ``GRAPHS`` to draw from.
    :raises ValueError: if ``graphs`` is empty or has an unknown name.
    """

    name: ClassVar[str] = "laplacian"
    graphs: tuple[str, ...] = GRAPHS

    def __post_init__(self) -> None:
        if not self.graphs or not set(self.graphs) <= set(GRAPHS):
            raise ValueError(f"graphs must be some of {', '.join(GRAPHS)}, got {self.graphs}")

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        degree = log_uniform(2.0, 8.0, (count, 1, 1), generator)

        def scores(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n n"]:
            return _scores(self.graphs[option], n, degree[members], generator)

        score = in_groups(integers(0, len(self.graphs) - 1, count, generator), scores)
        score.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
        linked = score < 1
        alone = ~linked.any(-1, keepdim=True)
        linked |= alone & torch.zeros_like(linked).scatter_(-1, score.argmin(-1, keepdim=True), True)
        linked = linked | linked.mT
        laplacian = -(linked * _mirrored(log_uniform(0.1, 10.0, (count, n, n), generator)))
        laplacian.diagonal(dim1=-2, dim2=-1).sub_(laplacian.sum(-1))
        return with_shift(laplacian, generator)


def _scores(
    graph: str, n: int, degree: Float64[Tensor, "k 1 1"], generator: torch.Generator
) -> Float64[Tensor, "k n n"]:
    """Symmetric; an edge is where the score is below 1, and the smaller the likelier."""
    k = len(degree)
    if graph == "geometric":
        points = uniform((k, n, 2), generator)
        # A disc of radius r holds about pi r^2 n of the points.
        return torch.cdist(points, points).square() * (math.pi * n / degree)
    chance = _mirrored(uniform((k, n, n), generator))
    if graph == "erdos_renyi":
        return chance * (n / degree)
    exponent = 2.2 + uniform((k, 1), generator)
    wanted = torch.arange(1, n + 1, dtype=torch.float64) ** (-1 / (exponent - 1))
    wanted = degree[:, 0] * wanted / wanted.mean(-1, keepdim=True)
    return chance * wanted.sum(-1)[:, None, None] / (wanted[:, :, None] * wanted[:, None, :])


def _mirrored(values: Float64[Tensor, "k n n"]) -> Float64[Tensor, "k n n"]:
    """The strict upper triangle on both sides of a zero diagonal."""
    upper = values.triu(1)
    return upper + upper.mT
