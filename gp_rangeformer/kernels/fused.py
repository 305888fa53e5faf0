"""A kernel matrix that knows where it came from: evaluated and differentiated tile by tile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.allocation.free_cores import free_cores
from gp_rangeformer.kernels.conditional_weight import ConditionalWeight
from gp_rangeformer.kernels.contract import DenseWeight, ThinWeight, contract
from gp_rangeformer.kernels.derivatives import parameter_products
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.evaluate import evaluate_arguments, of_points
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.matrices.recomputed import RecomputedKernelMatrix
from gp_rangeformer.kernels.matrices.share import ALONE, Share
from gp_rangeformer.kernels.native.batch import NativeBatch
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.tensor.plain import plain
from gp_rangeformer.kernels.unformed_weight import UnformedWeight
from gp_rangeformer.torch_modes import differentiated, no_autocast

# Points of a matrix that is not written past the caches, as larger ones are.
_BOUND = 1024
_INCOMING = "incoming gradients"


class FusedKernel:
    """K(x, x) of an expression.

    ``arguments`` (scaled coordinates and scalars, in the autograd graph of ``x`` and ``parameters``) is what gradients
    are taken with respect to: an autograd function that takes them as its inputs and returns :meth:`contract` from its
    backward gives ``x`` and the parameters their gradients. ``parameters``: as they were given, or none where the
    arguments came without. Holds no n x n tensor.

    :param x: n x d, float32 or float64; may require a gradient.
    :param parameters: constrained values in the order of :func:`~gp_rangeformer.kernels.expression.parameter_names`.
    :raises ValueError: if their number is not the expression's.
    """

    def __init__(self, expression: Expression, x: Float[Tensor, "n d"], parameters: tuple[Tensor, ...]) -> None:
        self._hold(expression, embed(expression, x, parameters), len(x), x.dtype, ALONE, parameters)

    @property
    def positive(self) -> bool:
        """Whether its matrix is positive semi-definite by what it is: no scale and no constant is negative."""
        if not self.parameters:
            return True
        return bool(torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters]).amin() >= 0)

    def ask_positive(self, ask: Callable[..., Callable[[], list[Tensor]]]) -> Callable[[], bool]:
        """Tells the same of a device.

        :param ask: what gives tensors on the CPU, once they are needed.
        """
        found = ask(*(parameter.detach() for parameter in self.parameters))
        return lambda: all(bool((parameter >= 0).all()) for parameter in found())

    @classmethod
    def of_arguments(
        cls,
        expression: Expression,
        arguments: tuple[Tensor, ...],
        n: int,
        dtype: torch.dtype,
        share: Share = ALONE,
        parameters: tuple[Tensor, ...] = (),
    ) -> FusedKernel:
        """The same of ``n`` points whose arguments are there already.

        :param share: the tiles that this process computes of :meth:`contract` and of products with :meth:`recomputed`.
        """
        fused = cls.__new__(cls)
        fused._hold(expression, arguments, n, dtype, share, parameters)
        return fused

    def _hold(
        self,
        expression: Expression,
        arguments: tuple[Tensor, ...],
        n: int,
        dtype: torch.dtype,
        share: Share,
        parameters: tuple[Tensor, ...],
    ) -> None:
        self.expression, self.arguments, self.n, self.dtype, self.share = expression, arguments, n, dtype, share
        self.parameters = parameters

    def dense(self) -> Float[Tensor, "n n"]:
        """K in the dtype of ``x``, in the autograd graph. Its backward contracts the dense weight that arrives; with
        ``create_graph=True`` it differentiates plain tensor operations instead, with their n x n temporaries."""
        return _Dense.apply(self.expression, self.n, self.dtype, *self.arguments)  # type: ignore[return-value]

    def diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of K, in the autograd graph: one number, expanded. O(n)."""
        return plain(self.expression, of_points(self.arguments, slice(0, 1)), 1, self.dtype).reshape(1).expand(self.n)

    def recomputed(self) -> RecomputedKernelMatrix:
        """K without its n^2 numbers, and without a graph."""
        return RecomputedKernelMatrix(self.expression, self.arguments, self.n, self.dtype, self.share)

    def contract(
        self,
        left: Float[Tensor, "n m"],
        right: Float[Tensor, "n m"],
        diagonal: Float[Tensor, " n"] | None = None,
        conditional: ConditionalWeight | None = None,
    ) -> tuple[Tensor, ...]:
        """d sum(W * K) with W = left right' + diag(diagonal) + conditional, for every one of ``arguments``. 2 n^2 m
        flops and one evaluation of half of K; no n x n memory. Without a graph."""
        with torch.no_grad():
            self.share.require_same(_INCOMING, left, right)
            weight = ThinWeight(left, right, diagonal, conditional)
            return contract(self.expression, self.arguments, weight, self.dtype, self.share)

    def contract_dense(self, weight: Float[Tensor, "n n"]) -> tuple[Tensor, ...]:
        """The same for a W that is there already."""
        with torch.no_grad():
            self.share.require_same(_INCOMING, weight[0], weight.diagonal())  # not n^2 numbers
            return contract(self.expression, self.arguments, DenseWeight(weight), self.dtype, self.share)

    def parameter_products(self, vector: Float[Tensor, " n"]) -> Float64[Tensor, "n p"]:
        """dK/dp @ vector for every element p of ``parameters``: see
        :func:`~gp_rangeformer.kernels.derivatives.parameter_products`."""
        return parameter_products(self.expression, self.arguments, self.parameters, self.n, self.dtype, vector)

    def evaluate(self) -> Float[Tensor, "n n"]:
        """K without a graph. What is bound to compiled code for it serves :meth:`contract_symmetric` too."""
        native = self._native
        if native is not None and self.n <= _BOUND:
            return native.evaluate().view(self.n, self.n)
        with torch.no_grad():
            return evaluate_arguments(self.expression, self.arguments, self.n, self.dtype)

    def contract_symmetric(self, weight: Float[Tensor, "*batch n n"]) -> tuple[Tensor, ...]:
        """d sum(W * K) for a W that is symmetric, alone or as a batch of one: on a CPU half of the pairs, and no tile
        of the weight."""
        native = self._native
        if native is None:
            return self.contract_dense(weight.reshape(self.n, self.n))
        pairs = zip(native.pull(weight.reshape(1, self.n, self.n)), self.arguments, strict=True)
        return tuple(gradient.to(argument.dtype).reshape(argument.shape) for gradient, argument in pairs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: addresses for compiled code are this process's own, and of these tensors."""
        return {name: value for name, value in vars(self).items() if name != "_native"}

    @functools.cached_property
    def _native(self) -> NativeBatch | None:
        """A batch of one, where compiled code on a CPU answers for this process alone."""
        library = library_on(self.arguments[0].device) if self.share is ALONE else None
        if library is None:
            return None
        return NativeBatch(library, self.expression, self.arguments, 1, self.n, self.dtype)


def takes_unformed_weights(kernel: Tensor) -> bool:
    """Whether the gradient of ``kernel`` arrives at a fused kernel's own node: :meth:`FusedKernel.dense` made it, and
    no operation has changed it since, in place or otherwise."""
    return isinstance(kernel.grad_fn, _Dense._backward_cls)  # type: ignore[attr-defined]


class _Dense(torch.autograd.Function):
    @staticmethod
    @free_cores()
    def forward(ctx, expression: Expression, n: int, dtype: torch.dtype, *arguments: Tensor) -> Tensor:
        ctx.expression = expression
        ctx.dtype = dtype
        ctx.save_for_backward(*arguments)
        return evaluate_arguments(expression, arguments, n, dtype)

    @staticmethod
    @free_cores()
    def backward(ctx, g_kernel: Tensor):  # type: ignore[override]
        arguments = ctx.saved_tensors
        # Grad mode is on during a backward pass with create_graph only.
        if differentiated(g_kernel):
            create_graph = torch.is_grad_enabled()
            wanted = [argument for argument, needed in zip(arguments, ctx.needs_input_grad[3:], strict=True) if needed]
            with torch.enable_grad(), no_autocast():
                kernel = plain(ctx.expression, arguments, g_kernel.shape[-1], ctx.dtype)
            found = iter(torch.autograd.grad(kernel, wanted, g_kernel, create_graph=create_graph))
            return None, None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[3:])
        weight = g_kernel.weight() if isinstance(g_kernel, UnformedWeight) else DenseWeight(g_kernel)
        with no_autocast():
            return None, None, None, *contract(ctx.expression, arguments, weight, ctx.dtype)
