"""Whole kernel matrices by the compiled library, all elements of a batch in one call.

The program of a batch is that of its first element; coordinates of the others follow in memory, and their parameters
come as tables. A call costs some thirty microseconds beside its arithmetic, however many elements there are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.expression import Constant, Expression, Kind, Scale, Stationary, Sum
from gp_rangeformer.kernels.native_interface import KINDS, Node, Operation, Program
from gp_rangeformer.kernels.profiles import largest_squared_distance, profile
from gp_rangeformer.workspace import empty_matrix

# Entries that one thread makes in the time that others take to wake up.
_ONE_THREAD = 2**14


class NativeBatch:
    """``count`` matrices of one expression with their arguments as the library reads them. Memory: O(count n D).

    :param library: from :func:`~gp_rangeformer.kernels.compiler.native_library`.
    :param arguments: as :func:`~gp_rangeformer.kernels.embedding.embed` returns them, on the CPU: coordinates
        (count) x n x D and scalars of ``count`` numbers.
    :param dtype: of the matrices, float32 or float64.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        expression: Expression,
        arguments: tuple[Tensor, ...],
        count: int,
        n: int,
        dtype: torch.dtype,
    ) -> None:
        suffix = "float" if dtype == torch.float32 else "double"
        self._value, self._pull = getattr(library, f"value_batch_{suffix}"), getattr(library, f"pull_batch_{suffix}")
        self._dtype, self._count, self._size = dtype, count, n
        self._nodes: list[Node] = []
        self._children: list[int] = []
        self._coordinates: list[Tensor] = []  # held while the library points into them
        self._tables: list[tuple[Tensor | float, Tensor | float]] = []  # of every node: parameter, largest distance
        self._shapes: dict[int, torch.Size] = {}  # of the coordinates of every stationary node
        # Of every argument: its node, and whether it is coordinates.
        _, self._places = self._add(expression, iter([argument.detach() for argument in arguments]))
        self._parameters = torch.empty(count, len(self._nodes), dtype=torch.float64)
        self._largest = torch.empty_like(self._parameters)
        for node, (parameter, largest) in enumerate(self._tables):
            self._parameters[:, node], self._largest[:, node] = parameter, largest
        self._node_array = (Node * len(self._nodes))(*self._nodes)
        self._child_array = (ctypes.c_int32 * len(self._children))(*self._children)
        self._program = Program(
            len(self._nodes), ctypes.addressof(self._node_array), ctypes.addressof(self._child_array), n
        )

    def evaluate(self) -> Float[Tensor, "count n n"]:
        """All matrices, symmetric to the last bit and with the bits of single tiles."""
        n = self._size
        out = empty_matrix(self._count * n, n, self._dtype, self._parameters.device).view(self._count, n, n)
        self._value(*self._common(), out.data_ptr(), self._threads())
        return out

    def pull(self, weight: Float[Tensor, "count n n"]) -> list[Tensor]:
        """d sum(weight * K) for every argument in float64: coordinates count x n x D and scalars count.

        :param weight: symmetric.
        """
        found = torch.zeros_like(self._parameters)
        gradients = {number: torch.zeros(shape, dtype=torch.float64) for number, shape in self._shapes.items()}
        for number, gradient in gradients.items():
            self._node_array[number].gradient = gradient.data_ptr()
        expected, held = (self._count, self._size, self._size), weight.contiguous()
        if held.dtype != self._dtype or tuple(held.shape) != expected:
            raise ValueError(f"the weight must be {expected} of {self._dtype}")
        self._pull(*self._common(), held.data_ptr(), found.data_ptr(), self._threads())
        return [gradients[node].mT if of_points else found[:, node] for node, of_points in self._places]

    def _common(self) -> tuple[int, ...]:
        return ctypes.addressof(self._program), self._count, self._parameters.data_ptr(), self._largest.data_ptr()

    def _threads(self) -> int:
        return 1 if self._count * self._size**2 <= _ONE_THREAD else torch.get_num_threads()

    def _add(self, expression: Expression, arguments: Iterator[Tensor]) -> tuple[int, list[tuple[int, bool]]]:
        """The number of the node, and the places of its arguments and of its children's. Children are numbered before
        their parents, and have their arguments after them."""
        node = Node()
        own: list[bool] = []  # whether coordinates, for every argument of its own
        parameter: Tensor | float = 0.0
        largest: Tensor | float = 0.0
        coordinates = None
        if isinstance(expression, Stationary):
            coordinates = next(arguments).reshape(self._count, self._size, -1).to(self._dtype).mT.contiguous()
            node.operation, node.kind = Operation.STATIONARY, KINDS[expression.kind]
            node.dimensions, node.coordinates = coordinates.shape[1], coordinates.data_ptr()
            own.append(True)
            if expression.kind == "rq":
                parameter = next(arguments).reshape(self._count).double()
                own.append(False)
                largest = torch.tensor([self._limit("rq", alpha) for alpha in parameter.tolist()]).double()
            else:
                largest = self._limit(expression.kind, None)
        elif isinstance(expression, (Constant, Scale)):
            node.operation = Operation.CONSTANT if isinstance(expression, Constant) else Operation.SCALE
            parameter = next(arguments).reshape(self._count)
            own.append(False)
        else:
            node.operation = Operation.SUM if isinstance(expression, Sum) else Operation.PRODUCT
        children = [self._add(child, arguments) for child in expression.children]
        node.first_child, node.child_count = len(self._children), len(children)
        self._children += [number for number, _ in children]
        number = len(self._nodes)
        self._nodes.append(node)
        self._tables.append((parameter, largest))
        if coordinates is not None:
            self._coordinates.append(coordinates)
            self._shapes[number] = coordinates.shape
        return number, [(number, of_points) for of_points in own] + [place for _, found in children for place in found]

    def _limit(self, kind: Kind, alpha: float | None) -> float:
        largest = largest_squared_distance(profile(kind, alpha, 0.0), self._dtype)
        return min(largest, torch.finfo(self._dtype).max / 4)
