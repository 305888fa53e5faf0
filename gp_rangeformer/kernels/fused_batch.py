"""The kernel matrices of a batch, of one expression each with its own points or parameters: by compiled code, in one
call for all of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.expression import Expression, Stationary
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.native.batch import NativeBatch
from gp_rangeformer.kernels.native.compiler import native_library
from gp_rangeformer.kernels.tensor.plain import plain


@dataclass(eq=False)
class FusedBatch:
    """K(x_e, x_e) for every element e of a batch, as :class:`~gp_rangeformer.kernels.fused.FusedKernel` has one.

    ``arguments``: coordinates count x n x D (float64) and scalars of count numbers, in the autograd graph; ``shape`` of
    the batch, whose elements are numbered in order. Holds no n x n tensor.
    """

    expression: Expression
    arguments: tuple[Tensor, ...]
    shape: torch.Size
    n: int
    dtype: torch.dtype

    @classmethod
    def of(
        cls, expression: Expression, x: Float[Tensor, "*batch n d"], parameters: tuple[Tensor, ...], shape: torch.Size
    ) -> FusedBatch:
        """
        :param parameters: as :func:`~gp_rangeformer.kernels.embedding.embed` takes them, each with a batch or without;
            alpha and constant have no axis of one number.
        :param shape: of the batch, to which inputs and parameters broadcast.
        """
        n, count = x.shape[-2], shape.numel()
        arguments = []
        for argument, of_points in zip(embed(expression, x, parameters), _of_points(expression), strict=True):
            own = (n, argument.shape[-1]) if of_points else ()
            arguments.append(argument.expand(*shape, *own).reshape(count, *own))
        return cls(expression, tuple(arguments), shape, n, x.dtype)

    @property
    def count(self) -> int:
        return self.shape.numel()

    def elements(self) -> list[FusedKernel]:
        """Every element by itself. unbind, not indexing: its backward stacks once."""
        parts = zip(*(argument.unbind(0) for argument in self.arguments), strict=True)
        return [FusedKernel.of_arguments(self.expression, arguments, self.n, self.dtype) for arguments in parts]

    def evaluate(self) -> Float[Tensor, "count n n"]:
        """All matrices, without a graph; each symmetric to the last bit."""
        return self._native.evaluate()

    def dense(self) -> Float[Tensor, "count n n"]:
        """The same in the autograd graph, with the n x n temporaries of plain tensor operations."""
        parts = zip(*(argument.unbind(0) for argument in self.arguments), strict=True)
        return torch.stack([plain(self.expression, arguments, self.n, self.dtype) for arguments in parts])

    def contract_symmetric(self, weight: Float[Tensor, "count n n"]) -> tuple[Tensor, ...]:
        """d sum(weight * K) for every one of ``arguments``, of symmetric weights; without a graph."""
        found = self._native.pull(weight)
        return tuple(gradient.to(argument) for gradient, argument in zip(found, self.arguments, strict=True))

    @functools.cached_property
    def _native(self) -> NativeBatch:
        library = native_library()
        assert library is not None, "there were compiled functions when this batch was taken on"
        return NativeBatch(library, self.expression, self.arguments, self.count, self.n, self.dtype)


def _of_points(expression: Expression) -> list[bool]:
    """For every argument, whether it is coordinates."""
    own = [isinstance(expression, Stationary) and name == "lengthscale" for name in expression.own_names]
    # A period is wound into the coordinates.
    own = own[:1] if isinstance(expression, Stationary) and expression.kind == "periodic" else own
    return own + [is_coordinates for child in expression.children for is_coordinates in _of_points(child)]
