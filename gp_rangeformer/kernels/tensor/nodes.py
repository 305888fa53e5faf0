"""A kernel expression on tensors: every node computes one tile of its matrix, and the gradient through it.

``value`` writes a tile. For gradients a tile is opened (the values and slopes of the stationary kernels are computed),
and then a weight is pulled through the tree from the root: each node adds what the tile contributes to the gradients of
its own arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gp_rangeformer.kernels.expression import Constant, Expression, Scale, Stationary, Sum
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


class TensorTiles:
    """Tiles by operations on tensors: a :class:`~gp_rangeformer.kernels.bind.KernelTiles` for every device.

    :param arguments: as :func:`~gp_rangeformer.kernels.embedding.embed` returns them.
    :param size: the most rows and columns of a tile.
    """

    mirrored = True

    def __init__(self, expression: Expression, arguments: tuple[Tensor, ...], dtype: torch.dtype, size: int) -> None:
        like = arguments[0].new_empty(0, dtype=dtype)
        self._root = _bind(expression, iter([argument.detach() for argument in arguments]), like, size)

    def value(self, block: Block, out: Tensor) -> None:
        self._root.value(block, out)

    def pull(self, block: Block, weight: Tensor) -> None:
        self._root.open(block)
        self._root.pull(block, weight, 1.0)

    def multiply(self, vectors: Tensor, rows: slice | None = None) -> None:
        """Tile by tile."""

    def multiply_wide(self, vectors: Tensor, rows: slice | None = None) -> None:
        """Tile by tile."""

    def gradients(self) -> list[Tensor]:
        return self._root.gradients()


@runtime_checkable
class _Node(Protocol):
    """A part of the expression with its arguments and buffers."""

    def value(self, block: Block, out: Tensor) -> None:
        """Write the tile of the node's matrix; ``out`` may be strided."""
        ...

    def open(self, block: Block) -> None:
        """Compute what :meth:`current` and :meth:`pull` need of this tile."""
        ...

    def current(self, block: Block) -> Tensor:
        """The opened tile's values; valid until the next ``open``."""
        ...

    def pull(self, block: Block, weight: Tensor, factor: Factor) -> None:
        """Add the tile's part of d sum(factor * weight * tile). ``weight`` is left as it is."""
        ...

    def gradients(self) -> list[Tensor]:
        """The sums over all tiles, for the arguments of this node and of its children, in float64."""
        ...


def _bind(expression: Expression, arguments: Iterator[Tensor], like: Tensor, size: int) -> _Node:
    if isinstance(expression, Stationary):
        coordinates = next(arguments)
        alpha = float(next(arguments)) if expression.kind == "rq" else None
        return _StationaryNode(expression, coordinates, alpha, like, size)
    if isinstance(expression, Constant):
        return _ConstantNode(float(next(arguments)), like, size)
    if isinstance(expression, Scale):
        # On a device nobody waits for its value.
        factor = next(arguments).double().reshape(())
        factor = float(factor) if factor.device.type == "cpu" else factor
        return _ScaleNode(factor, _bind(expression.child, arguments, like, size), like, size)
    children = [_bind(child, arguments, like, size) for child in expression.children]
    return (_SumNode if isinstance(expression, Sum) else _ProductNode)(children, like, size)


class _StationaryNode:
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
        # On a device nobody waits for the largest norm. (Written so that NaN is far.)
        reach = float(4 * self._points.square().sum(-1).max()) if points.device.type == "cpu" else torch.inf
        self._sums_in_float64 = self._squares is not None and not reach <= _NEAR
        self._far = not reach <= _FAR
        self._pulling: Tensor | None = None  # pairs of which the slopes count; None for all

    @functools.cached_property
    def _sums(self) -> Tensor:
        """sum_j S_ij z_j and sum_j S_ij, one column per i: a tile's in float64, or of near points and by Triton in its
        own dtype; their sums in float64. (Products with D + 1 rows take two thirds of the time of those with D + 1
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
            _add(self._alpha_gradient, _dot(weight, alpha_slope), factor)
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
        _add(self._sums[:, block.rows], self._points_and_ones[:, block.columns] @ slopes.mT, scale)
        _add(self._sums[:, block.columns], self._points_and_ones[:, block.rows] @ slopes, scale)

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


class _ConstantNode:
    def __init__(self, constant: float, like: Tensor, size: int) -> None:
        self._constant = constant
        self._storage = Scratch(like, size)
        self._gradient = like.new_zeros((), dtype=torch.float64)

    def value(self, block: Block, out: Tensor) -> None:
        out.fill_(self._constant)

    def open(self, block: Block) -> None:
        self.value(block, self._storage.of(block))

    def current(self, block: Block) -> Tensor:
        return self._storage.of(block)

    def pull(self, block: Block, weight: Tensor, factor: Factor) -> None:
        _add(self._gradient, weight.sum(), factor)

    def gradients(self) -> list[Tensor]:
        return [self._gradient]


class _ScaleNode:
    def __init__(self, factor: Factor, child: _Node, like: Tensor, size: int) -> None:
        self._factor, self._child = factor, child
        self._like, self._storage = like, Scratch(like, size)

    @functools.cached_property
    def _gradient(self) -> Tensor:
        return self._like.new_zeros((), dtype=torch.float64)

    def value(self, block: Block, out: Tensor) -> None:
        self._child.value(block, out)
        out.mul_(self._factor)

    def open(self, block: Block) -> None:
        self._child.open(block)

    def current(self, block: Block) -> Tensor:
        return torch.mul(self._child.current(block), self._factor, out=self._storage.of(block))

    def pull(self, block: Block, weight: Tensor, factor: Factor) -> None:
        _add(self._gradient, _dot(weight, self._child.current(block)), factor)
        self._child.pull(block, weight, factor * self._factor)

    def gradients(self) -> list[Tensor]:
        return [self._gradient, *self._child.gradients()]


class _SumNode:
    def __init__(self, children: list[_Node], like: Tensor, size: int) -> None:
        self._children = children
        self._storage = Scratch(like, size)

    def value(self, block: Block, out: Tensor) -> None:
        first, *others = self._children
        first.value(block, out)
        for child in others:
            term = self._storage.of(block)
            child.value(block, term)
            out.add_(term)

    def open(self, block: Block) -> None:
        for child in self._children:
            child.open(block)

    def current(self, block: Block) -> Tensor:
        total = self._storage.of(block).zero_()
        for child in self._children:
            total.add_(child.current(block))
        return total

    def pull(self, block: Block, weight: Tensor, factor: Factor) -> None:
        for child in self._children:
            child.pull(block, weight, factor)

    def gradients(self) -> list[Tensor]:
        return [gradient for child in self._children for gradient in child.gradients()]


class _ProductNode:
    def __init__(self, children: list[_Node], like: Tensor, size: int) -> None:
        self._children = children
        self._storage, self._weight_storage = Scratch(like, size), Scratch(like, size)

    def value(self, block: Block, out: Tensor) -> None:
        first, *others = self._children
        first.value(block, out)
        for child in others:
            factor = self._storage.of(block)
            child.value(block, factor)
            out.mul_(factor)

    def open(self, block: Block) -> None:
        for child in self._children:
            child.open(block)

    def current(self, block: Block) -> Tensor:
        total = self._storage.of(block).fill_(1)
        for child in self._children:
            total.mul_(child.current(block))
        return total

    def pull(self, block: Block, weight: Tensor, factor: Factor) -> None:
        values = [child.current(block) for child in self._children]
        for index, child in enumerate(self._children):
            # Not the product divided by the child's value, which may have underflowed to zero.
            own = self._weight_storage.of(block).copy_(weight)
            for value in values[:index] + values[index + 1 :]:
                own.mul_(value)
            child.pull(block, own, factor)

    def gradients(self) -> list[Tensor]:
        return [gradient for child in self._children for gradient in child.gradients()]


def _add(total: Tensor, part: Tensor, factor: Factor) -> None:
    """total += factor * part."""
    if isinstance(factor, Tensor):
        total.addcmul_(part, factor)
    else:
        total.add_(part, alpha=factor)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.dot(one.reshape(-1), other.reshape(-1))
