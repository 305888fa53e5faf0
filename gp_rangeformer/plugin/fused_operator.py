"""A fused kernel as a LinearOperator, for kernel matrices that this process does not hold."""

from __future__ import annotations

from typing import Any

import torch
from linear_operator.operators import DenseLinearOperator, LinearOperator
from linear_operator.utils.generic import _to_helper
from torch import Tensor

from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.autograd import contracted, multiplied
from gp_rangeformer.plugin.storage import require_dense
from gp_rangeformer.torch_modes import batched


class FusedLinearOperator(LinearOperator):
    """K of ``size`` points, represented by the arguments of its expression; see
    :class:`~gp_rangeformer.kernels.fused.FusedKernel`.

    The hooks take it for what it is. GPyTorch's own code gets products tile by tile, with gradients; what needs single
    entries gets the dense matrix.

    :param arguments: coordinates n x D and scalars, in the autograd graph.
    :param kernel_dtype: of K; coordinates are float64.
    :param note: how K is held and why, for the report.
    :param parameters: those of the expression, which ``arguments`` depend on; only to say how well their gradients are
        known.
    """

    def __init__(
        self,
        *arguments: Tensor,
        expression: Expression,
        size: int,
        kernel_dtype: torch.dtype,
        note: str | None = None,
        parameters: tuple[Tensor, ...] = (),
    ) -> None:
        super().__init__(
            *arguments, expression=expression, size=size, kernel_dtype=kernel_dtype, note=note, parameters=parameters
        )
        self.fused = FusedKernel.of_arguments(expression, arguments, size, kernel_dtype, parameters=parameters)
        self.note = note

    @classmethod
    def of(cls, fused: FusedKernel, note: str | None = None) -> FusedLinearOperator:
        """Aliases of the arguments: marks of ownership on them must not end up on a module's own parameters."""
        aliases = (argument.view_as(argument) for argument in fused.arguments)
        return cls(
            *aliases,
            expression=fused.expression,
            size=fused.n,
            kernel_dtype=fused.dtype,
            note=note,
            parameters=fused.parameters,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.fused.dtype

    @property
    def device(self) -> torch.device:
        return self.fused.arguments[0].device

    def _size(self) -> torch.Size:
        return torch.Size((self.fused.n, self.fused.n))

    def _transpose_nonbatch(self) -> LinearOperator:
        return self

    def _diagonal(self) -> Tensor:
        return self.fused.diagonal()

    def _matmul(self, rhs: Tensor) -> Tensor:
        """A batch of right-hand sides becomes columns. linear_operator's own function calls this without a graph, and
        the derivatives of operators that hold this one (Kronecker products, roots) go through it. Dense for what stands
        for many at once (``is_grads_batched``): compiled tiles cannot read it."""
        if batched(rhs):
            return self.to_dense() @ rhs
        columns = rhs.unsqueeze(-1) if rhs.dim() == 1 else rhs.movedim(-2, 0).reshape(self.fused.n, -1)
        product = multiplied(self.fused, columns)
        if rhs.dim() == 1:
            return product.squeeze(-1)
        return product.reshape(self.fused.n, *rhs.shape[:-2], rhs.shape[-1]).movedim(0, -2)

    def _bilinear_derivative(self, left_vecs: Tensor, right_vecs: Tensor) -> tuple[Tensor | None, ...]:
        left, right = (
            vecs.unsqueeze(-1) if vecs.dim() == 1 else vecs.movedim(-2, 0).reshape(self.fused.n, -1)
            for vecs in (left_vecs, right_vecs)
        )
        return tuple(contracted(self.fused, left, right))

    def __add__(self, other: Any) -> LinearOperator | Tensor:
        """Dense, where a tensor is added that is no matrix of this size: numbers and vectors, as the host adds them to
        dense ones."""
        if isinstance(other, Tensor) and other.shape[-2:] != self.shape:
            return DenseLinearOperator(self.to_dense() + other)
        return super().__add__(other)

    def _permute_batch(self, *dims: int) -> LinearOperator:
        """There is none; what represents K are no matrices, of which linear_operator would permute others."""
        return self

    def _unsqueeze_batch(self, dim: int) -> LinearOperator:
        """Dense: what represents K are no matrices, of which a batch could be made."""
        return DenseLinearOperator(self.to_dense().unsqueeze(dim))

    def type(self, dtype: torch.dtype) -> LinearOperator:
        """Dense, where that is another dtype than K has: coordinates are float64 in any case."""
        return self if dtype == self.dtype else DenseLinearOperator(self.to_dense().to(dtype))

    def to(self, *args: Any, **kwargs: Any) -> LinearOperator:
        device, dtype = _to_helper(*args, **kwargs)
        found = self if dtype is None else self.type(dtype)
        return found if device is None or device == found.device else LinearOperator.to(found, device)

    def detach(self) -> FusedLinearOperator:
        """Without the graph of its parameters as well, which linear_operator does not look for."""
        keywords = {**self._kwargs, "parameters": tuple(parameter.detach() for parameter in self.fused.parameters)}
        return FusedLinearOperator(*(argument.detach() for argument in self.fused.arguments), **keywords)

    def detach_(self) -> FusedLinearOperator:
        """Of other tensors from now on: aliases, which its arguments are, cannot be detached in place."""
        detached = self.detach()
        FusedLinearOperator.__init__(self, *detached.fused.arguments, **detached._kwargs)
        return self

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        return self.to_dense()[(*batch_indices, row_index, col_index)]

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        return DenseLinearOperator(self.to_dense()[(*batch_indices, row_index, col_index)])

    def to_dense(self) -> Tensor:
        """K in the autograd graph.

        :raises InsufficientMemoryError: if it does not fit.
        """
        require_dense("GPyTorch asks for the dense kernel matrix", self.fused.n, self.dtype, self.device)
        return self.fused.dense()
