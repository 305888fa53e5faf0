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
from gp_rangeformer.kernels.tensor.stationary import Factor, StationaryNode, add, dot
from gp_rangeformer.kernels.tiles import Block, Scratch


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
        return StationaryNode(expression, coordinates, alpha, like, size)
    if isinstance(expression, Constant):
        return _ConstantNode(float(next(arguments)), like, size)
    if isinstance(expression, Scale):
        # On a device nobody waits for its value.
        factor = next(arguments).double().reshape(())
        factor = float(factor) if factor.device.type == "cpu" else factor
        return _ScaleNode(factor, _bind(expression.child, arguments, like, size), like, size)
    children = [_bind(child, arguments, like, size) for child in expression.children]
    return (_SumNode if isinstance(expression, Sum) else _ProductNode)(children, like, size)


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
        add(self._gradient, weight.sum(), factor)

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
        add(self._gradient, dot(weight, self._child.current(block)), factor)
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
