"""Kernel matrices of Gaussian processes: stationary kernels, their sums and products, over five kinds of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pretrain.matrices.draws import first_ones, in_groups, integers, log_uniform, normal, uniform
from pretrain.matrices.family import MatrixFamily

LARGEST_DIMENSION = 4
NOISES = (1e-4, 1.0)


def _rational_quadratic(r: Float64[Tensor, "k n n"], shape: Float64[Tensor, "k 1 1"]) -> Float64[Tensor, "k n n"]:
    return (1 + r.square() / (2 * shape)) ** -shape


# Correlation at scaled distance r; ``shape`` is read by the rational quadratic alone. The periodic kernel is the RBF of
# points that `on_circles` has moved.
PROFILES: dict[str, Callable[[Float64[Tensor, "k n n"], Float64[Tensor, "k 1 1"]], Float64[Tensor, "k n n"]]] = {
    "rbf": lambda r, shape: (-0.5 * r.square()).exp(),
    "matern12": lambda r, shape: (-r).exp(),
    "matern32": lambda r, shape: (1 + math.sqrt(3) * r) * (-math.sqrt(3) * r).exp(),
    "matern52": lambda r, shape: (1 + math.sqrt(5) * r + 5 / 3 * r.square()) * (-math.sqrt(5) * r).exp(),
    "rq": _rational_quadratic,
    "periodic": lambda r, shape: (-0.5 * r.square()).exp(),
}


@dataclass(frozen=True)
class GPKernel(MatrixFamily):
    """K + noise I: K with unit diagonal, noise log-uniform in 1e-4..1. Condition number at most 1 + n / noise.

    Half of the matrices have one kernel, a quarter a convex combination of two and a quarter a product of two. Every
    kernel has its own length-scale per input dimension (ARD), log-uniform in 0.1..2 times sqrt(d), d uniform in 1..4.
    O(count n^2 d).

    :param kernels: names from ``PROFILES`` to draw from.
    :raises ValueError: if ``kernels`` is empty or has an unknown name.
    """

    name: ClassVar[str] = "gp_kernel"
    kernels: tuple[str, ...] = tuple(PROFILES)

    def __post_init__(self) -> None:
        if not self.kernels or not set(self.kernels) <= set(PROFILES):
            raise ValueError(f"kernels must be some of {', '.join(PROFILES)}, got {self.kernels}")

    def draw(self, count: int, n: int, generator: torch.Generator) -> Float64[Tensor, "count n n"]:
        dimensions = integers(1, LARGEST_DIMENSION, count, generator)
        points = _points(n, dimensions, generator)
        kernel = self._kernel(points, dimensions, generator)
        how = integers(0, 3, count, generator)
        for option, combine in ((2, _convex), (3, _product)):
            members = (how == option).nonzero().squeeze(-1)
            if len(members):
                other = self._kernel(points[members], dimensions[members], generator)
                kernel[members] = combine(kernel[members], other, generator)
        kernel.diagonal(dim1=-2, dim2=-1).add_(log_uniform(*NOISES, (count, 1), generator))
        return kernel

    def _kernel(
        self, points: Float64[Tensor, "count n d"], dimensions: Int64[Tensor, " count"], generator: torch.Generator
    ) -> Float64[Tensor, "count n n"]:
        """One kernel per batch element."""
        count = len(points)
        # Distances in the unit cube grow like sqrt(d): so must the length-scales, or K tends to the identity.
        lengths = log_uniform(0.1, 2.0, (count, LARGEST_DIMENSION), generator) * dimensions[:, None].sqrt()
        weights = (first_ones(LARGEST_DIMENSION, dimensions) / lengths)[:, None, :]
        shape = log_uniform(0.3, 3.0, (count, 1, 1), generator)
        period = log_uniform(0.3, 3.0, (count, 1, 1), generator)

        def correlations(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n n"]:
            kind, inputs = self.kernels[option], points[members]
            scaled = inputs * weights[members]
            if kind == "periodic":
                scaled = on_circles(inputs, period[members], weights[members])
            # By differences: by products, a point's distance to itself comes out as 1e-8.
            distances = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
            return PROFILES[kind](distances, shape[members])

        return in_groups(integers(0, len(self.kernels) - 1, count, generator), correlations)


def on_circles(
    inputs: Float64[Tensor, "k n d"], period: Float64[Tensor, "k 1 1"], weights: Float64[Tensor, "k 1 d"]
) -> Float64[Tensor, "k n 2*d"]:
    """Every coordinate wound around a circle of radius ``weights`` (1 / length-scale), one turn per period.

    |(cos u, sin u) - (cos v, sin v)|^2 = 4 sin^2((u - v) / 2): the RBF exp(-r^2 / 2) of the result is the periodic
    kernel exp(-2 sum_i sin^2(pi (x_i - z_i) / period) / l_i^2).
    """
    angle = 2 * math.pi / period * inputs
    return torch.cat([angle.cos() * weights, angle.sin() * weights], dim=-1)


def _convex(
    one: Float64[Tensor, "k n n"], other: Float64[Tensor, "k n n"], generator: torch.Generator
) -> Float64[Tensor, "k n n"]:
    return torch.lerp(one, other, uniform((len(one), 1, 1), generator))


def _product(
    one: Float64[Tensor, "k n n"], other: Float64[Tensor, "k n n"], generator: torch.Generator
) -> Float64[Tensor, "k n n"]:
    return one * other


def _points(n: int, dimensions: Int64[Tensor, " count"], generator: torch.Generator) -> Float64[Tensor, "count n d"]:
    """n inputs of about unit extent per batch element; coordinates beyond its dimension are there but not used."""

    def inputs(option: int, members: Int64[Tensor, " k"]) -> Float64[Tensor, "k n d"]:
        return (_uniform, _gaussian, _clusters, _jittered_grid, _manifold)[option](n, dimensions[members], generator)

    return in_groups(integers(0, 4, len(dimensions), generator), inputs)


def _uniform(n: int, dimensions: Int64[Tensor, " k"], generator: torch.Generator) -> Float64[Tensor, "k n d"]:
    return uniform((len(dimensions), n, LARGEST_DIMENSION), generator)


def _gaussian(n: int, dimensions: Int64[Tensor, " k"], generator: torch.Generator) -> Float64[Tensor, "k n d"]:
    return 0.3 * normal((len(dimensions), n, LARGEST_DIMENSION), generator)


def _clusters(n: int, dimensions: Int64[Tensor, " k"], generator: torch.Generator) -> Float64[Tensor, "k n d"]:
    k = len(dimensions)
    clusters = integers(2, 6, k, generator)
    member = (uniform((k, n), generator) * clusters[:, None]).long()
    centres = uniform((k, 6, LARGEST_DIMENSION), generator)
    spread = log_uniform(0.01, 0.1, (k, 1, 1), generator)
    chosen = centres.gather(1, member[..., None].expand(-1, -1, LARGEST_DIMENSION))
    return chosen + spread * normal((k, n, LARGEST_DIMENSION), generator)


def _jittered_grid(n: int, dimensions: Int64[Tensor, " k"], generator: torch.Generator) -> Float64[Tensor, "k n d"]:
    """The first n points of a cubic grid, each moved by up to 0.3 cells: without that, one dimension is Toeplitz."""
    side = (n ** (1 / dimensions.double()) - 1e-9).ceil()[:, None, None]
    stride = side ** torch.arange(LARGEST_DIMENSION)
    cell = torch.arange(n, dtype=torch.float64)[:, None].div(stride, rounding_mode="floor").remainder(side)
    jitter = 0.6 * uniform((len(dimensions), n, LARGEST_DIMENSION), generator) - 0.3
    return (cell + jitter) / side


def _manifold(n: int, dimensions: Int64[Tensor, " k"], generator: torch.Generator) -> Float64[Tensor, "k n d"]:
    """A smooth random curve: inputs that fill one dimension however many they have."""
    k = len(dimensions)
    place = uniform((k, n, 1), generator)
    turns = 2 * math.pi * (0.25 + uniform((k, 1, LARGEST_DIMENSION), generator))
    start = 2 * math.pi * uniform((k, 1, LARGEST_DIMENSION), generator)
    return 0.5 + 0.5 * (place * turns + start).sin()
