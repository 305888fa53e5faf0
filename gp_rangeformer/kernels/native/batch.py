"""Whole kernel matrices by the compiled library, all elements of a batch in one call.

The program of a batch is that of its first element; coordinates of the others follow in memory, and their parameters
come as tables. A call costs some thirty microseconds beside its arithmetic, however many elements there are.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.allocation.workspace import empty_matrix
from gp_rangeformer.kernels.expression import Constant, Expression, Kind, Scale, Stationary, Sum
from gp_rangeformer.kernels.native.interface import KINDS, Node, Operation, Program, function_for
from gp_rangeformer.kernels.tensor.profiles import largest_squared_distance, profile

# Entries that one thread makes in the time that others take to wake up.
_ONE_THREAD = 2**14
_CPU = torch.device("cpu")


class _Layout:
    """What the elements of every batch of an expression have in common: its nodes, children before their parents."""

    def __init__(self, expression: Expression) -> None:
        self.nodes: list[Node] = []
        self.children: list[int] = []
        self.expressions: list[Expression] = []  # of every node
        # Of every argument: its node, and whether it is coordinates.
        _, self.places = self._add(expression)
        self.node_array = (Node * len(self.nodes))(*self.nodes)
        self.child_array = (ctypes.c_int32 * len(self.children))(*self.children)

    def _add(self, expression: Expression) -> tuple[int, list[tuple[int, bool]]]:
        """The number of the node, and the places of its arguments and of its children's, which follow them."""
        node = Node()
        own: list[bool] = []  # whether coordinates, for every argument of its own
        if isinstance(expression, Stationary):
            node.operation, node.kind = Operation.STATIONARY, KINDS[expression.kind]
            own = [True, False] if expression.kind == "rq" else [True]
        elif isinstance(expression, (Constant, Scale)):
            node.operation = Operation.CONSTANT if isinstance(expression, Constant) else Operation.SCALE
            own = [False]
        else:
            node.operation = Operation.SUM if isinstance(expression, Sum) else Operation.PRODUCT
        children = [self._add(child) for child in expression.children]
        node.first_child, node.child_count = len(self.children), len(children)
        self.children += [number for number, _ in children]
        number = len(self.nodes)
        self.nodes.append(node)
        self.expressions.append(expression)
        return number, [(number, of_points) for of_points in own] + [place for _, found in children for place in found]


_layout = functools.lru_cache(maxsize=64)(_Layout)


class NativeBatch:
    """``count`` matrices of one expression with their arguments as the library reads them. Memory: O(count n D).

    :param library: from :func:`~gp_rangeformer.kernels.native.compiler.native_library`.
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
        self._value, self._pull = (function_for(library, f"{name}_batch", dtype) for name in ("value", "pull"))
        self._dtype, self._count, self._size = dtype, count, n
        self._layout = layout = _layout(expression)
        nodes = len(layout.nodes)
        self._node_array = type(layout.node_array).from_buffer_copy(layout.node_array)
        self._tables = torch.zeros(2, count, nodes, dtype=torch.float64, device="cpu")
        self._parameters, largest = self._tables.numpy()  # on which single numbers cost less
        self._coordinates: dict[int, Tensor] = {}  # of stationary nodes; the library points into them
        for (number, of_points), argument in zip(layout.places, arguments, strict=True):
            if of_points:
                self._point_to(number, argument.detach())
            else:
                self._parameters[:, number] = argument.detach().reshape(count).numpy()
        for number in self._coordinates:
            largest[:, number] = self._limits(number)
        self._program = self._program_of(self._node_array)

    def evaluate(self) -> Float[Tensor, "count n n"]:
        """All matrices, symmetric to the last bit and with the bits of single tiles."""
        n = self._size
        out = empty_matrix(self._count * n, n, self._dtype, _CPU).view(self._count, n, n)
        self._value(*self._common(self._program), out.data_ptr(), self._threads())
        return out

    def pull(self, weight: Float[Tensor, "count n n"]) -> list[Tensor]:
        """d sum(weight * K) for every argument in float64: coordinates count x n x D and scalars count.

        :param weight: symmetric.
        """
        expected, held = (self._count, self._size, self._size), weight.contiguous()
        if held.dtype != self._dtype or tuple(held.shape) != expected:
            raise ValueError(f"the weight must be {expected} of {self._dtype}")
        found = torch.zeros_like(self._tables[0])
        # A copy of the nodes: another thread may be asking for the same gradients.
        nodes, gradients = type(self._node_array).from_buffer_copy(self._node_array), {}
        for number, coordinates in self._coordinates.items():
            gradients[number] = torch.zeros(coordinates.shape, dtype=torch.float64, device="cpu")
            nodes[number].gradient = gradients[number].data_ptr()
        program = self._program_of(nodes)
        self._pull(*self._common(program), held.data_ptr(), found.data_ptr(), self._threads())
        return [gradients[node].mT if of_points else found[:, node] for node, of_points in self._layout.places]

    def _program_of(self, nodes: ctypes.Array[Node]) -> Program:
        address = ctypes.addressof
        return Program(len(nodes), address(nodes), address(self._layout.child_array), self._size)

    def _common(self, program: Program) -> tuple[int, ...]:
        parameters = self._tables.data_ptr()
        largest = parameters + self._parameters.nbytes
        return ctypes.addressof(program), self._count, parameters, largest

    def _threads(self) -> int:
        return 1 if self._count * self._size**2 <= _ONE_THREAD else torch.get_num_threads()

    def _point_to(self, number: int, points: Tensor) -> None:
        coordinates = points.reshape(self._count, self._size, -1).to(self._dtype).mT.contiguous()
        node = self._node_array[number]
        node.dimensions, node.coordinates = coordinates.shape[1], coordinates.data_ptr()
        self._coordinates[number] = coordinates

    def _limits(self, number: int) -> list[float] | float:
        """Squared distances at which the profiles are held."""
        expression = self._layout.expressions[number]
        assert isinstance(expression, Stationary)
        if expression.kind != "rq":
            return _limit(expression.kind, None, self._dtype)
        alphas = self._parameters[:, number].tolist()
        return [_limit("rq", alpha, self._dtype) for alpha in alphas]


@functools.lru_cache(maxsize=256)
def _limit(kind: Kind, alpha: float | None, dtype: torch.dtype) -> float:
    return largest_squared_distance(profile(kind, alpha, 0.0), dtype)
