"""A kernel matrix that knows where it came from: evaluated and differentiated tile by tile."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.contract import DenseWeight, ThinWeight, contract
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.evaluate import evaluate_arguments
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.plain import plain


class FusedKernel:
    """K(x, x) of an expression.

    ``arguments`` (scaled coordinates and scalars, in the autograd graph of ``x`` and ``parameters``) is what gradients
    are taken with respect to: an autograd function that takes them as its inputs and returns :meth:`contract` from its
    backward gives ``x`` and the parameters their gradients. Holds no n x n tensor.

    :param x: n x d, float32 or float64; may require a gradient.
    :param parameters: constrained values in the order of :func:`~gp_rangeformer.kernels.expression.parameter_names`.
    :raises ValueError: if their number is not the expression's.
    """

    def __init__(self, expression: Expression, x: Float[Tensor, "n d"], parameters: tuple[Tensor, ...]) -> None:
        self.expression = expression
        self.arguments = embed(expression, x, parameters)
        self._x = x

    def dense(self) -> Float[Tensor, "n n"]:
        """K in the dtype of ``x``, in the autograd graph. Its backward contracts the dense weight that arrives; with
        ``create_graph=True`` it differentiates plain tensor operations instead, with their n x n temporaries."""
        return _Dense.apply(self.expression, self._x.detach(), *self.arguments)  # type: ignore[return-value]

    def contract(
        self, left: Float[Tensor, "n m"], right: Float[Tensor, "n m"], diagonal: Float[Tensor, " n"] | None = None
    ) -> tuple[Tensor, ...]:
        """d sum(W * K) with W = left right' + diag(diagonal), for every one of ``arguments``. 2 n^2 m flops and one
        evaluation of half of K; no n x n memory. Without a graph."""
        with torch.no_grad():
            return contract(self.expression, self.arguments, ThinWeight(left, right, diagonal), self._x.dtype)

    def contract_dense(self, weight: Float[Tensor, "n n"]) -> tuple[Tensor, ...]:
        """The same for a W that is there already."""
        with torch.no_grad():
            return contract(self.expression, self.arguments, DenseWeight(weight), self._x.dtype)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx, expression: Expression, x: Tensor, *arguments: Tensor) -> Tensor:
        ctx.expression = expression
        ctx.dtype = x.dtype
        ctx.save_for_backward(*arguments)
        return evaluate_arguments(expression, arguments, x)

    @staticmethod
    def backward(ctx, g_kernel: Tensor):  # type: ignore[override]
        arguments = ctx.saved_tensors
        # Grad mode is on during a backward pass with create_graph only.
        if torch.is_grad_enabled():
            wanted = [argument for argument, needed in zip(arguments, ctx.needs_input_grad[2:], strict=True) if needed]
            kernel = plain(ctx.expression, arguments, len(g_kernel), ctx.dtype)
            found = iter(torch.autograd.grad(kernel, wanted, g_kernel, create_graph=True))
            return None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[2:])
        return None, None, *contract(ctx.expression, arguments, DenseWeight(g_kernel), ctx.dtype)
