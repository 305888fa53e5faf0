"""The stationary kernels of an expression on tensors: values, slopes, and the gradients of coordinates and shapes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gp_rangeformer.kernels.expression import Stationary
from gp_rangeformer.kernels.gpu.device_tiles import DeviceTiles, device_tiles
from gp_rangeformer.kernels.tensor.distances import SquaredDistances
from gp_rangeformer.kernels.tensor.profiles import (
    EQUAL,
    RBF,
    Buffers,
    Opened,
    largest_squared_distance,
    profile,
    unresolved_distance,
)
from gp_rangeformer.kernels.tiles import Block, Scratch

Factor = float | Tensor  # a product of scales
# Squared distances up to which sums of slopes times coordinates may be those of float32 tiles: what cancels in them is
# within 100 roundings. (Beyond, a step takes 6 % longer, n = 2000, 8 dimensions.)
_NEAR = 400
# And from which on it shows in them what is left of slopes where they are held, exp(-60), and what rounding in float64
# leaves of coincident points.
_FAR = 1e8


class StationaryNode:
    """One of them; a node of :mod:`~gp_rangeformer.kernels.tensor.nodes`."""

    def __init__(
        self, expression: Stationary, coordinates: Tensor, alpha: float | None, like: Tensor, size: int
    ) -> None:
        self._rounded = points = coordinates.to(like.dtype)
        self._points = points.double()  # as the tiles see them: sums of differences then cancel to the last bit
        unresolved = 0.0
        if expression.kind == "matern12":
            unresolved = unresolved_distance(self._points.square().sum(-1, keepdim=True), like.dtype)
        self._profile = profile(expression.kind, alpha, unresolved)
        self._largest = largest_squared_distance(self._profile, like.dtype)
        self._storage = [Scratch(like, size) for _ in range(3)]
        self._alpha_gradient = None if alpha is None else self._points.new_zeros(())
        self._opened: Opened | None = None
        self._device_tiles = device_tiles(expression.kind, points, alpha, unresolved)
        self._squares = None if self._device_tiles is not None else SquaredDistances(self._points, like.dtype, size)
        # On a device nobody waits for the largest norm, and sums are float32 as Triton's. (Written so that NaN is far.)
        reach = float(4 * self._points.square().sum(-1).max()) if points.device.type == "cpu" else 0.0
        self._sums_in_float64 = not reach <= _NEAR
        self._far = not reach <= _FAR
        self._pulling: Tensor | None = None  # pairs of which the slopes count; None for all

    @functools.cached_property
    def _sums(self) -> Tensor:
        """sum_j S_ij z_j and sum_j S_ij, one column per i: a tile's in float64, or of near points and on a device in
        its own dtype; their sums in float64. (Products with D + 1 rows take two thirds of the time of those with D + 1
        columns.)"""
        n, dimensions = self._points.shape
        return self._points.new_zeros(dimensions + 1, n)

    @functools.cached_property
    def _points_and_ones(self) -> Tensor:
        points = (self._points if self._sums_in_float64 else self._rounded).mT
        return torch.cat([points, torch.ones_like(points[:1])])

    def value(self, block: Block, out: Tensor) -> None:
        if self._device_tiles is not None:
            self._device_tiles.value(block, out)
        else:
            self._profile.value(self._distances(block), out)

    def open(self, block: Block) -> None:
        if self._device_tiles is not None:
            self._opened = self._open_on_device(block, self._device_tiles)
        else:
            distances = self._distances(block)
            q = distances.first
            self._pulling = (q > EQUAL) & (q < self._largest) if self._far else None
            self._opened = self._profile.open(distances)

    def _open_on_device(self, block: Block, device_tiles: DeviceTiles) -> Opened:
        value, slope, shape_slope = self._buffers(block)
        device_tiles.open(block, value, slope, shape_slope)
        if isinstance(self._profile, RBF):
            return Opened(value, value, slope)
        return Opened(value, slope, slope, shape_slope if self._alpha_gradient is not None else None)

    def current(self, block: Block) -> Tensor:
        assert self._opened is not None
        return self._opened.value

    def pull(self, block: Block, weight: Tensor, factor: Factor) -> None:
        assert self._opened is not None
        _, slope, target, alpha_slope = self._opened
        if self._alpha_gradient is not None and alpha_slope is not None:
            add(self._alpha_gradient, dot(weight, alpha_slope), factor)
        # q_ij = |z_i - z_j|^2, S = weight * dk/dq: the gradient for z_i is 2 sum_j S_ij (z_i - z_j), and for z_j
        # likewise with S'. Points do not move from themselves: a large S_ii would only leave rounding.
        slopes = torch.mul(weight, slope, out=target)
        if self._sums_in_float64:
            assert self._squares is not None
            slopes = self._squares.widened(block, slopes)
        if self._pulling is not None:
            slopes.mul_(self._pulling)
        if block.on_diagonal:
            slopes.diagonal().zero_()
        scale = factor * self._profile.slope_factor
        add(self._sums[:, block.rows], self._points_and_ones[:, block.columns] @ slopes.mT, scale)
        add(self._sums[:, block.columns], self._points_and_ones[:, block.rows] @ slopes, scale)

    def gradients(self) -> list[Tensor]:
        coordinates = 2 * (self._sums[-1:].mT * self._points - self._sums[:-1].mT)
        return [coordinates] if self._alpha_gradient is None else [coordinates, self._alpha_gradient]

    def _buffers(self, block: Block) -> Buffers:
        return Buffers(*(storage.of(block) for storage in self._storage))

    def _distances(self, block: Block) -> Buffers:
        buffers = self._buffers(block)
        assert self._squares is not None
        self._squares.write(block, buffers.first)
        buffers.first.clamp_max_(self._largest)
        return buffers


def add(total: Tensor, part: Tensor, factor: Factor) -> None:
    """total += factor * part."""
    if isinstance(factor, Tensor):
        total.addcmul_(part, factor)
    else:
        total.add_(part, alpha=factor)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Of all entries."""
    return torch.dot(one.reshape(-1), other.reshape(-1))
