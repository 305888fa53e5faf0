"""Random Gaussian-process systems for the log-determinant tail: inputs, kernel, noise; as varied as data sets are.

One draw gives one kernel matrix on points in random order. Its leading blocks are kernel matrices of fewer points, and
the Cholesky factor of A holds the log determinants of all of them: one factorisation serves several sizes.

Every random number comes from the CPU, so that a seed means the same system on every device, up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.logdet.evidence import SMALLEST_SIZE

SIZES = (SMALLEST_SIZE, 4096)
NOISES = (1e-4, 1.0)  # relative to the variance of the process
RANKS = (32, 512)
KINDS = ("rbf", "matern12", "matern32", "matern52", "rq", "periodic")
SMOOTH_KINDS = ("rbf", "rq", "matern52", "periodic")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class KernelDraw:
    """A kernel matrix with unit diagonal and what it was made from."""

    matrix: Float64[Tensor, "n n"]
    kind: str


def draw_kernel(n: int, generator: torch.Generator, device: torch.device = _CPU) -> KernelDraw:
    """One kernel, a convex combination of two, or a product of two, on inputs of 1 to 24 dimensions. O(n^2 d)."""
    dimension = int(2 ** _uniform(0, math.log2(25), generator))
    points = draw_inputs(n, dimension, generator).to(device)
    matrix, kind = _stationary(points, generator)
    how = int(torch.randint(0, 4, (1,), generator=generator))
    if how >= 2:
        other, other_kind = _stationary(points, generator)
        if how == 2:
            matrix = torch.lerp(matrix, other, _uniform(0.05, 0.95, generator))
            kind = f"{kind} + {other_kind}"
        else:
            matrix.mul_(other)
            kind = f"{kind} * {other_kind}"
    return KernelDraw(matrix, kind)


def draw_composite(n: int, generator: torch.Generator, device: torch.device = _CPU) -> KernelDraw:
    """A sum of two to four parts on 1 to 3 dimensions: trends, cycles that drift, irregularities. O(n^2 d).

    Variances differ by up to 10^3, length-scales by up to 10^2.5: few large eigenvalues, then a second, much smaller
    plateau, which :func:`draw_kernel` hardly ever draws.
    """
    dimension = 1 + int(torch.randint(0, 3, (1,), generator=generator))
    points = draw_inputs(n, dimension, generator).to(device)
    count = 2 + int(torch.randint(0, 3, (1,), generator=generator))
    variances = [10 ** -_uniform(0, 3, generator) for _ in range(count)]
    matrix, names = torch.zeros(n, n, dtype=torch.float64, device=device), []
    for variance in variances:
        part, name = _stationary(points, generator, SMOOTH_KINDS, scales=(-1.5, 1), periods=(-1.3, 0.7))
        if name == "periodic" or _uniform(0, 1, generator) < 0.15:
            drift, drift_name = _stationary(points, generator, ("rbf", "rq", "matern52"), scales=(-0.3, 1))
            part.mul_(drift)
            name = f"{name} * {drift_name}"
        matrix.add_(part, alpha=variance / sum(variances))
        names.append(name)
    return KernelDraw(matrix, " + ".join(names))


def draw_inputs(n: int, dimension: int, generator: torch.Generator) -> Float64[Tensor, "n d"]:
    """Standardised inputs: independent, correlated, clustered or on a curved sheet; some columns discrete or heavy
    tailed, some rows repeated."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kind = int(torch.randint(0, 5, (1,), generator=generator))
    if kind == 0:
        points = torch.rand(n, dimension, generator=generator, dtype=torch.float64)
    elif kind == 1:
        points = normal(n, dimension)
    elif kind == 2:
        clusters = int(2 ** _uniform(1, 7, generator))
        member = torch.randint(0, clusters, (n,), generator=generator)
        points = normal(clusters, dimension)[member] + 10 ** _uniform(-2, 0, generator) * normal(n, dimension)
    else:  # a linear or curved sheet of lower dimension, with some noise
        latent = normal(n, max(1, int(dimension * _uniform(0.2, 0.8, generator))))
        points = latent @ normal(latent.shape[1], dimension)
        if kind == 4:
            points = (points * _uniform(0.5, 2, generator)).sin()
        points = points / points.std(0) + 10 ** _uniform(-2, -0.3, generator) * normal(n, dimension)
    for column in range(dimension):
        fate = _uniform(0, 1, generator)
        if fate < 0.15:  # categories and counts
            scale = points[:, column].std() / 2 ** _uniform(0, 4, generator)
            points[:, column] = (points[:, column] / scale).round()
        elif fate < 0.3:  # heavy tails
            centred = points[:, column] - points[:, column].mean()
            points[:, column] = (_uniform(0.5, 1.5, generator) * centred / centred.std()).sinh()
    if _uniform(0, 1, generator) < 0.2:
        repeated = torch.randint(0, n, (int(n * _uniform(0, 0.2, generator)),), generator=generator)
        source = torch.randint(0, n, repeated.shape, generator=generator)
        points[repeated] = points[source]
    return (points - points.mean(0)) / points.std(0).clamp_min(1e-6)


def _stationary(
    points: Tensor,
    generator: torch.Generator,
    kinds: tuple[str, ...] = KINDS,
    *,
    scales: tuple[float, float] = (-0.7, 0.8),
    periods: tuple[float, float] = (-0.3, 0.7),
) -> tuple[Tensor, str]:
    """One kernel with a length-scale per dimension; a third of the dimensions hardly matter, as after training.

    :param scales: decimal logarithms of the smallest and the largest common factor of the length-scales.
    :param periods: likewise of the period, in standard deviations of the inputs.
    """
    d = points.shape[1]
    kind = kinds[int(torch.randint(0, len(kinds), (1,), generator=generator))]
    lengths = torch.randn(d, generator=generator, dtype=torch.float64).mul(_uniform(0, 1, generator)).exp()
    lengths[torch.rand(d, generator=generator) < _uniform(0, 0.7, generator)] *= 8
    # Distances grow like the root of the number of dimensions that matter.
    lengths *= 10 ** _uniform(*scales, generator) * (lengths**-2).sum().clamp_min(1).sqrt()
    lengths = lengths.to(points.device)
    scaled = points / lengths
    if kind == "periodic":  # the RBF of points wound around circles
        period = 10 ** _uniform(*periods, generator)
        angle = 2 * math.pi / period * points
        scaled = torch.cat([angle.cos() / lengths, angle.sin() / lengths], dim=-1)
    scaled = scaled - scaled.mean(0)
    square = scaled.square().sum(-1)
    matrix = torch.addmm(square + square[:, None], scaled, scaled.mT, alpha=-2).clamp_min_(0)
    matrix.diagonal().zero_()
    if kind in ("rbf", "periodic"):
        return matrix.mul_(-0.5).exp_(), kind
    if kind == "rq":
        shape = 10 ** _uniform(-0.5, 0.7, generator)
        return matrix.div_(2 * shape).add_(1).pow_(-shape), kind
    r = matrix.sqrt_()
    if kind == "matern12":
        return r.neg_().exp_(), kind
    if kind == "matern32":
        r = r.mul_(3**0.5)
        return (1 + r).mul_((-r).exp_()), kind
    r = r.mul_(5**0.5)
    return (1 + r + r.square() / 3).mul_((-r).exp_()), kind


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
