"""Tiles of an expression by the compiled library: a :class:`~gp_rangeformer.kernels.bind.KernelTiles` for CPUs.

Distances are sums of squared differences, so that K is symmetric to the last bit and coincident points are at distance
zero; every entry has the same bits in whatever tile it is computed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gp_rangeformer.kernels.expression import Constant, Expression, Scale, Stationary, Sum
from gp_rangeformer.kernels.native.interface import KINDS, Node, Operation, Program, function_for
from gp_rangeformer.kernels.native.product import pack
from gp_rangeformer.kernels.tensor.profiles import largest_squared_distance, profile
from gp_rangeformer.kernels.tiles import Block


class NativeTiles:
    """An expression with its arguments as the library reads them. Memory: O(n D).

    :param library: from :func:`~gp_rangeformer.kernels.native.compiler.native_library`.
    :param arguments: as :func:`~gp_rangeformer.kernels.embedding.embed` returns them, on the CPU.
    :param n: the number of points.
    :param dtype: of the tiles, float32 or float64.
    """

    # Writing a transposed tile takes longer than computing it (n = 8000, Matern-3/2: 49 ms with, 28 without).
    mirrored = False

    def __init__(
        self, library: ctypes.CDLL, expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype
    ) -> None:
        self.library, self.dtype, self.size = library, dtype, n
        self._value, self._pull = function_for(library, "value", dtype), function_for(library, "pull", dtype)
        self._multiply = function_for(library, "multiply_made", dtype)
        self._multiply_wide = function_for(library, "multiply_wide_made", dtype)
        self._nodes: list[Node] = []
        self._children: list[int] = []
        self._coordinates: list[Tensor] = []  # held while the library points into them
        self._gradients: list[Tensor] = []  # in the order of the arguments
        self.argument_nodes: dict[int, int] = {}  # of every argument the number of its node
        self._add(expression, iter([argument.detach() for argument in arguments]))
        self._node_array = (Node * len(self._nodes))(*self._nodes)
        self._child_array = (ctypes.c_int32 * len(self._children))(*self._children)
        self._program = Program(
            len(self._nodes), ctypes.addressof(self._node_array), ctypes.addressof(self._child_array), self.size
        )

    @property
    def node_count(self) -> int:
        return len(self._nodes)

    @property
    def program(self) -> int:
        """The address that the library's functions take; valid while these tiles live."""
        return ctypes.addressof(self._program)

    def value(self, block: Block, out: Tensor) -> None:
        """Write a tile of any size; the columns of ``out`` are neighbours in memory."""
        if out.stride(1) != 1:
            raise ValueError(f"the columns of a tile must be neighbours in memory, got strides {out.stride()}")
        self._call(self._value, block, out)

    def pull(self, block: Block, weight: Tensor) -> None:
        """Add the tile's part of d sum(weight * tile) to the gradients."""
        self._call(self._pull, block, weight.contiguous())

    def multiply(self, vectors: Tensor, rows: slice | None = None) -> Tensor:
        """K @ vectors, n x k, without K: every entry is made once for a product, and summed in the dtype of the tiles.
        Rounds as :func:`~gp_rangeformer.kernels.native.product.multiply`.

        :param rows: the only ones to compute, with the bits of the whole product; others are zero. None for all.
        """
        if vectors.dtype != self.dtype or len(vectors) != self.size:
            raise ValueError(f"the columns must have {self.size} numbers of {self.dtype}, got {vectors.dtype}")
        block = pack(vectors)
        rows = rows or slice(0, self.size)
        out = vectors.new_zeros(self.size, block.width)
        threads = torch.get_num_threads()
        self._multiply(self.program, rows.start, rows.stop, *block.pointers(), out.data_ptr(), threads)
        return out[:, : vectors.shape[1]]

    def multiply_wide(self, vectors: Tensor, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """K @ vectors, n x k, and sum_j K_ij^2, from entries in the dtype of the tiles, summed in float64 as
        :func:`~gp_rangeformer.kernels.native.product.multiply_wide` does, to the same bits.

        :param vectors: n x k, float64.
        :param rows: the only ones to compute, with the bits of the whole product; others are zero. None for all.
        """
        if vectors.dtype != torch.float64 or len(vectors) != self.size:
            raise ValueError(f"the columns must have {self.size} numbers of torch.float64, got {vectors.dtype}")
        rows = rows or slice(0, self.size)
        out, squares = torch.zeros_like(vectors, memory_format=torch.contiguous_format), vectors.new_zeros(self.size)
        columns = vectors.mT.contiguous()
        self._multiply_wide(
            self.program, rows.start, rows.stop, columns.data_ptr(), len(columns), out.data_ptr(), squares.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out, squares

    def gradients(self) -> list[Tensor]:
        """The sums over all tiles so far, for every argument, in float64."""
        return [gradient.mT if gradient.dim() == 2 else gradient for gradient in self._gradients]

    def _call(self, function: Callable[..., None], block: Block, tile: Tensor) -> None:
        rows, columns = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
        if tile.dtype != self.dtype or tuple(tile.shape) != (rows, columns):
            raise ValueError(f"the tile must be {rows} x {columns} of {self.dtype}")
        threads = torch.get_num_threads()
        function(
            self.program, block.rows.start, rows, block.columns.start, columns, tile.data_ptr(),
            tile.stride(0), threads,
        )  # fmt: skip

    def _add(self, expression: Expression, arguments: Iterator[Tensor]) -> int:
        """The number of the node; its children come before it, its arguments before theirs."""
        node, own = Node(), len(self._gradients)
        if isinstance(expression, Stationary):
            self._fill_stationary(node, expression, arguments)
        elif isinstance(expression, (Constant, Scale)):
            node.operation = Operation.CONSTANT if isinstance(expression, Constant) else Operation.SCALE
            node.parameter = float(next(arguments))
            node.parameter_gradient = self._gradient().data_ptr()
        else:
            node.operation = Operation.SUM if isinstance(expression, Sum) else Operation.PRODUCT
        own_arguments = range(own, len(self._gradients))
        children = [self._add(child, arguments) for child in expression.children]
        node.first_child, node.child_count = len(self._children), len(children)
        self._children += children
        number = len(self._nodes)
        self._nodes.append(node)
        self.argument_nodes.update(dict.fromkeys(own_arguments, number))
        return number

    def _fill_stationary(self, node: Node, expression: Stationary, arguments: Iterator[Tensor]) -> None:
        coordinates = next(arguments).to(self.dtype).mT.contiguous()
        self._coordinates.append(coordinates)
        node.operation, node.kind, node.dimensions = Operation.STATIONARY, KINDS[expression.kind], len(coordinates)
        node.coordinates = coordinates.data_ptr()
        node.gradient = self._gradient(*coordinates.shape).data_ptr()
        alpha = None
        if expression.kind == "rq":
            alpha = node.parameter = float(next(arguments))
            node.parameter_gradient = self._gradient().data_ptr()
        node.largest = largest_squared_distance(profile(expression.kind, alpha, 0.0), self.dtype)

    def _gradient(self, *shape: int) -> Tensor:
        self._gradients.append(torch.zeros(shape, dtype=torch.float64, device="cpu"))
        return self._gradients[-1]
