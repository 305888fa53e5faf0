"""Autograd functions: the gradient of log determinants, quadratic forms and solves, from solves that are already done.

K enters as a plain tensor or, where it is not held, as a fused kernel. A weight dL/dK of low rank goes back to K in
factors (:mod:`~gp_rangeformer.kernels.unformed_weight`), whatever stands between K and the kernel that made it. What a
backward pass needs is saved by autograd, which frees it with the graph. Second derivatives (``create_graph=True``) and
batches of gradients (``is_grads_batched``) cost an inverse, and are rarely asked for; those of a solve, under
``create_graph``, solve again to the same tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from gp_rangeformer.allocation.free_cores import free_cores
from gp_rangeformer.kernels.conditional_weight import ConditionalWeight
from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.kernels.fused import FusedKernel, takes_unformed_weights
from gp_rangeformer.kernels.fused_batch import FusedBatch
from gp_rangeformer.kernels.unformed_weight import UnformedWeight
from gp_rangeformer.solvers.exact_batch import BatchEvaluation
from gp_rangeformer.system.answers import Evaluation, Weight
from gp_rangeformer.torch_modes import batched, differentiated, no_autocast

AnyEvaluation = Evaluation | BatchEvaluation
AnyFused = FusedKernel | FusedBatch


def likelihood_terms(
    kernel: Tensor | AnyFused, noise: Tensor, rhs: Tensor, evaluation: AnyEvaluation
) -> tuple[Tensor, Tensor]:
    """(rhs_j' A^-1 rhs_j for every column j, log|A|) of A = K + D, m and a scalar, with a graph.

    :param kernel: K, n x n, or what makes it where it is not held as one tensor.
    :param noise: n; ``rhs``: n x m; all with a leading axis for a batch.
    :param evaluation: what the solvers found of this very system.
    """
    fused, arguments = _parts_of(kernel)
    return InvQuadLogDet.apply(noise, rhs, evaluation, fused, *arguments)  # type: ignore[return-value]


def solved(kernel: Tensor | FusedKernel, noise: Tensor, rhs: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """A^-1 rhs of A = K + D, n x m, with a graph.

    :param solve: the solution for right-hand sides without a graph: asked now, and in the backward pass once more.
    """
    fused, arguments = _parts_of(kernel)
    return Solve.apply(noise, rhs, (solve(rhs.detach()),), solve, fused, *arguments)  # type: ignore[return-value]


def multiplied(kernel: FusedKernel, columns: Tensor) -> Tensor:
    """K columns, n x m, with a graph, of a K that is not held."""
    return Multiply.apply(columns, kernel, *kernel.arguments)  # type: ignore[return-value]


def contracted(kernel: FusedKernel, left: Tensor, right: Tensor) -> Sequence[Tensor | None]:
    """The gradient of sum(left * K right) for the arguments of a K that is not held; with a graph where this is part of
    a backward pass that is differentiated itself."""
    if not differentiated(left, right):
        return kernel.contract(left, right)
    return _through(_with_graph(kernel), kernel, left @ right.mT)


class InvQuadLogDet(torch.autograd.Function):
    """See :func:`likelihood_terms`. Backward: the weight's factors, O(n (m + probes)), where a fused kernel made K and
    nothing changed it since; one evaluation of half of K, 2 n^2 (m + probes) flops, where K is not held; else one n x n
    weight."""

    @staticmethod
    def forward(ctx, noise: Tensor, rhs: Tensor, evaluation: AnyEvaluation, fused: AnyFused | None, *arguments: Tensor):
        ctx.weight, ctx.fused, ctx.count = type(evaluation.weight), fused, len(arguments)
        # The arguments of a fused kernel too: autograd refuses a backward pass after they were changed in place.
        ctx.save_for_backward(noise, rhs, *_fields(evaluation.weight), *arguments)
        return evaluation.outputs(rhs)

    @staticmethod
    @free_cores()
    def backward(ctx, g_inv_quad: Tensor, g_logdet: Tensor):  # type: ignore[override]
        noise, rhs, *saved = ctx.saved_tensors
        kernel = ctx.fused or _Held(saved[-1])
        wanted = ctx.needs_input_grad[4:]
        if differentiated(g_inv_quad, g_logdet):
            dense = _with_graph(kernel)
            kernel_grad, noise_grad, rhs_grad = _differentiable_gradient(dense, noise, rhs, g_inv_quad, g_logdet)
            return noise_grad, rhs_grad, None, None, *_through(dense, kernel, kernel_grad)
        weight: Weight = ctx.weight(*saved[: -ctx.count])
        found: Sequence[Tensor | None] = [None] * ctx.count
        noise_grad = None
        with no_autocast():
            thin = weight.thin(g_inv_quad, g_logdet)
            if thin is not None:
                noise_grad = thin.own_diagonal() if ctx.needs_input_grad[0] else None
                if any(wanted):
                    assert not isinstance(kernel, FusedBatch), "weights of batches are dense"
                    found = kernel.contract(thin.left, thin.right, thin.diagonal, thin.conditional)
            elif ctx.needs_input_grad[0] or any(wanted):
                dense = weight.dense(g_inv_quad, g_logdet)
                noise_grad = dense.diagonal(dim1=-2, dim2=-1).clone()
                found = kernel.contract_symmetric(dense) if any(wanted) else found
            rhs_grad = 2 * g_inv_quad.unsqueeze(-2) * weight.solutions if ctx.needs_input_grad[1] else None
        return noise_grad, rhs_grad, None, None, *found


class Solve(torch.autograd.Function):
    """See :func:`solved`. Backward: one more solve, with the incoming gradient as right-hand side, and one evaluation
    of half of K where it is not held."""

    @staticmethod
    def forward(
        ctx,
        noise: Tensor,
        rhs: Tensor,
        found: tuple[Tensor],
        solve: Callable[[Tensor], Tensor],
        fused: FusedKernel | None,
        *arguments: Tensor,
    ):
        (solution,) = found  # in a tuple, so that autograd takes it for an output
        ctx.solve, ctx.fused = solve, fused
        ctx.save_for_backward(noise, solution, *arguments)
        return solution

    @staticmethod
    @free_cores()
    def backward(ctx, g_solution: Tensor):  # type: ignore[override]
        noise, solution, *arguments = ctx.saved_tensors
        kernel = ctx.fused or _Held(arguments[-1])
        wanted = ctx.needs_input_grad[5:]
        found: Sequence[Tensor | None] = [None] * len(arguments)
        if differentiated(g_solution):
            dense = _with_graph(kernel)
            if batched(g_solution):
                rhs_grad = _exact_inverse(dense, noise).to(g_solution.dtype) @ g_solution
            else:
                # With create_graph this pass is itself differentiated.
                own = dense if ctx.fused is None else ctx.fused
                rhs_grad = solved(own, noise, g_solution.contiguous(), ctx.solve)
            if any(wanted):
                found = _through(dense, kernel, _outer_gradient(rhs_grad, solution))
        else:
            rhs_grad = ctx.solve(g_solution.contiguous())
            if any(wanted):
                with no_autocast():
                    found = kernel.contract(-rhs_grad, solution)
        noise_grad = -(rhs_grad * solution).sum(-1) if ctx.needs_input_grad[0] else None
        return noise_grad, rhs_grad if ctx.needs_input_grad[1] else None, None, None, None, *found


class Multiply(torch.autograd.Function):
    """See :func:`multiplied`. Backward: one more product, and one evaluation of half of K."""

    @staticmethod
    def forward(ctx, columns: Tensor, kernel: FusedKernel, *arguments: Tensor):
        ctx.kernel = kernel
        ctx.save_for_backward(columns, *arguments)
        return kernel.recomputed().matmul(columns)

    @staticmethod
    @free_cores()
    def backward(ctx, g_product: Tensor):  # type: ignore[override]
        columns, *arguments = ctx.saved_tensors
        found: Sequence[Tensor | None] = [None] * len(arguments)
        wanted = any(ctx.needs_input_grad[2:])
        if differentiated(g_product):
            dense = _with_graph(ctx.kernel)
            columns_grad = dense @ g_product
            if wanted:
                found = _through(dense, ctx.kernel, g_product @ columns.mT)
        else:
            with no_autocast():
                columns_grad = ctx.kernel.recomputed().matmul(g_product) if ctx.needs_input_grad[0] else None
                found = ctx.kernel.contract(g_product, columns) if wanted else found
        return columns_grad, None, *found


class _Held:
    """K as the tensor that entered, asked what a fused kernel is asked."""

    def __init__(self, kernel: Tensor) -> None:
        self.arguments = (kernel,)

    def contract(
        self,
        left: Tensor,
        right: Tensor,
        diagonal: Tensor | None = None,
        conditional: ConditionalWeight | None = None,
    ) -> list[Tensor]:
        """The weight in factors for a fused kernel's own node; formed for any other and for leaves."""
        (kernel,), thin = self.arguments, ThinWeight(left, right, diagonal, conditional)
        return [UnformedWeight(thin) if takes_unformed_weights(kernel) else thin.symmetric()]

    def contract_symmetric(self, weight: Tensor) -> list[Tensor]:
        return [weight]


def _parts_of(kernel: Tensor | AnyFused) -> tuple[AnyFused | None, tuple[Tensor, ...]]:
    """What makes K, and the tensors that gradients are for."""
    return (None, (kernel,)) if isinstance(kernel, Tensor) else (kernel, kernel.arguments)


def _with_graph(kernel: AnyFused | _Held) -> Tensor:
    """K as a differentiable function of the arguments."""
    if isinstance(kernel, _Held):
        return kernel.arguments[0]
    with torch.enable_grad():
        return kernel.dense()


def _fields(weight: Weight) -> tuple[Tensor | None, ...]:
    return tuple(getattr(weight, field.name) for field in fields(weight))  # type: ignore[arg-type]


def _exact_inverse(kernel: Tensor, noise: Tensor) -> Tensor:
    """(K + D)^-1 in float64 as a differentiable function of the symmetric part of K. O(n^3)."""
    wide = kernel.double()
    symmetric = 0.5 * (wide + wide.mT)
    return torch.cholesky_inverse(torch.linalg.cholesky(symmetric + noise.double().diag_embed()))


def _differentiable_gradient(
    kernel: Tensor, noise: Tensor, rhs: Tensor, g_inv_quad: Tensor, g_logdet: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The exact gradient as a differentiable function of everything it depends on."""
    with no_autocast():
        inverse = _exact_inverse(kernel, noise)
        solution = inverse @ rhs.double()
        scaled = solution * g_inv_quad.double().unsqueeze(-2)
        weight = g_logdet.double()[..., None, None] * inverse - scaled @ solution.mT
        noise_gradient = weight.diagonal(dim1=-2, dim2=-1)
        return weight.to(kernel.dtype), noise_gradient.to(noise.dtype), (2 * scaled).to(rhs.dtype)


def _outer_gradient(rhs_grad: Tensor, solution: Tensor) -> Tensor:
    """Symmetric, as the host's: K is, and a caller may hold it as a leaf."""
    outer = rhs_grad @ solution.mT
    return -0.5 * (outer + outer.mT)


def _through(kernel: Tensor, fused: AnyFused | _Held, weight: Tensor) -> Sequence[Tensor | None]:
    """The gradient of sum(weight * kernel) for the arguments of ``fused``, which made ``kernel``; differentiable."""
    if isinstance(fused, _Held):
        return [weight]
    create_graph = torch.is_grad_enabled()
    wanted = [argument for argument in fused.arguments if argument.requires_grad]
    if not wanted:
        return [None] * len(fused.arguments)
    found = iter(
        torch.autograd.grad(kernel, wanted, weight.reshape(kernel.shape), create_graph=create_graph, allow_unused=True)
    )
    return [next(found) if argument.requires_grad else None for argument in fused.arguments]
