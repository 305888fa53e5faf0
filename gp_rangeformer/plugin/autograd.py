"""Autograd functions: the gradient of log determinants, quadratic forms and solves, from solves that are already done.

K enters as a plain tensor or, where it is not held, as a fused kernel. A weight dL/dK of low rank goes back to K in
factors (:mod:`~gp_rangeformer.kernels.unformed_weight`), whatever stands between K and the kernel that made it. What a
backward pass needs is saved by autograd, which frees it with the graph. Second derivatives (``create_graph=True``) and
batches of gradients (``is_grads_batched``) are the exact ones: they cost an inverse, and are rarely asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.kernels.fused import FusedKernel, takes_unformed_weights
from gp_rangeformer.kernels.fused_batch import FusedBatch
from gp_rangeformer.kernels.unformed_weight import UnformedWeight
from gp_rangeformer.solvers.exact_batch import BatchEvaluation
from gp_rangeformer.system.answers import Evaluation, Weight
from gp_rangeformer.torch_modes import batched, no_autocast

AnyEvaluation = Evaluation | BatchEvaluation
AnyFused = FusedKernel | FusedBatch


class InvQuadLogDet(torch.autograd.Function):
    """(rhs_j' A^-1 rhs_j for every column j, log|A|) of A = K + D.

    ``apply(kernel n x n, noise n, rhs n x m, evaluation)`` -> (m, scalar), with what the solvers found of this very
    system; all with a leading axis for a batch. Backward: the weight's factors, O(n (m + probes)), where a fused kernel
    made K and nothing changed it since; else one n x n weight.
    """

    @staticmethod
    def forward(ctx, kernel: Tensor, noise: Tensor, rhs: Tensor, evaluation: AnyEvaluation):
        ctx.weight = type(evaluation.weight)
        ctx.save_for_backward(kernel, noise, rhs, *_parts(evaluation.weight))
        return evaluation.outputs(rhs)

    @staticmethod
    def backward(ctx, g_inv_quad: Tensor, g_logdet: Tensor):  # type: ignore[override]
        kernel, noise, rhs, *parts = ctx.saved_tensors
        if _differentiated(g_inv_quad, g_logdet):
            return *_differentiable_gradient(kernel, noise, rhs, g_inv_quad, g_logdet), None
        weight: Weight = ctx.weight(*parts)
        kernel_grad = noise_grad = rhs_grad = None
        with no_autocast():
            thin = weight.thin(g_inv_quad, g_logdet)
            if ctx.needs_input_grad[0]:
                kernel_grad = weight.dense(g_inv_quad, g_logdet) if thin is None else _for_kernel(kernel, thin)
            if ctx.needs_input_grad[1]:
                if thin is not None:
                    noise_grad = thin.own_diagonal()
                else:
                    dense = weight.dense(g_inv_quad, g_logdet) if kernel_grad is None else kernel_grad
                    noise_grad = dense.diagonal(dim1=-2, dim2=-1).clone()
            if ctx.needs_input_grad[2]:
                rhs_grad = 2 * g_inv_quad.unsqueeze(-2) * weight.solutions
        return kernel_grad, noise_grad, rhs_grad, None


class FusedInvQuadLogDet(torch.autograd.Function):
    """As :class:`InvQuadLogDet`, of a kernel matrix that is not held as one tensor.

    ``apply(noise n, rhs n x m, evaluation, fused, *fused.arguments)`` -> (m, scalar), or all of a batch. Backward: one
    evaluation of half of K, 2 n^2 (m + probes) flops, and no n x n matrix where the weight has thin factors.
    """

    @staticmethod
    def forward(ctx, noise: Tensor, rhs: Tensor, evaluation: AnyEvaluation, fused: AnyFused, *arguments: Tensor):
        ctx.weight, ctx.fused = type(evaluation.weight), fused
        # The arguments too: autograd refuses a backward pass after they were changed in place.
        ctx.save_for_backward(noise, rhs, *_parts(evaluation.weight), *arguments)
        return evaluation.outputs(rhs)

    @staticmethod
    def backward(ctx, g_inv_quad: Tensor, g_logdet: Tensor):  # type: ignore[override]
        fused: AnyFused = ctx.fused
        noise, rhs, *parts = ctx.saved_tensors[: -len(fused.arguments)]
        if _differentiated(g_inv_quad, g_logdet):
            with torch.enable_grad():
                kernel = fused.dense()
            kernel_grad, noise_grad, rhs_grad = _differentiable_gradient(kernel, noise, rhs, g_inv_quad, g_logdet)
            return noise_grad, rhs_grad, None, None, *_through(kernel, fused, kernel_grad)
        weight: Weight = ctx.weight(*parts)
        found: Sequence[Tensor | None] = [None] * len(fused.arguments)
        noise_grad = None
        with no_autocast():
            thin = weight.thin(g_inv_quad, g_logdet)
            if thin is not None:
                noise_grad = thin.own_diagonal() if ctx.needs_input_grad[0] else None
                if any(ctx.needs_input_grad[4:]):
                    assert isinstance(fused, FusedKernel), "weights of batches are dense"
                    found = fused.contract(thin.left, thin.right, thin.diagonal)
            elif ctx.needs_input_grad[0] or any(ctx.needs_input_grad[4:]):
                dense = weight.dense(g_inv_quad, g_logdet)
                noise_grad = dense.diagonal(dim1=-2, dim2=-1).clone()
                found = fused.contract_symmetric(dense)
            rhs_grad = 2 * g_inv_quad.unsqueeze(-2) * weight.solutions if ctx.needs_input_grad[1] else None
        return noise_grad, rhs_grad, None, None, *found


class Solve(torch.autograd.Function):
    """A^-1 rhs of A = K + D. ``apply(kernel n x n, noise n, rhs n x m, solve)`` -> n x m, where ``solve(rhs)`` returns
    the solution. Backward: one more solve, with the incoming gradient as right-hand side."""

    @staticmethod
    def forward(ctx, kernel: Tensor, noise: Tensor, rhs: Tensor, solve: Callable[[Tensor], Tensor]):
        solution = solve(rhs)
        ctx.solve = solve
        ctx.save_for_backward(kernel, noise, solution)
        return solution

    @staticmethod
    def backward(ctx, g_solution: Tensor):  # type: ignore[override]
        kernel, noise, solution = ctx.saved_tensors
        if batched(g_solution):
            rhs_grad = _exact_inverse(kernel, noise).to(g_solution.dtype) @ g_solution
        else:
            # apply, not solve: with create_graph this pass is itself differentiated.
            rhs_grad = Solve.apply(kernel, noise, g_solution.contiguous(), ctx.solve)
        assert isinstance(rhs_grad, Tensor)
        kernel_grad = noise_grad = None
        if ctx.needs_input_grad[0]:
            if _differentiated(g_solution):
                kernel_grad = _outer_gradient(rhs_grad, solution)
            else:
                kernel_grad = _for_kernel(kernel, ThinWeight(-rhs_grad, solution))
        if ctx.needs_input_grad[1]:
            noise_grad = -(rhs_grad * solution).sum(-1)
        return kernel_grad, noise_grad, rhs_grad if ctx.needs_input_grad[2] else None, None


class FusedSolve(torch.autograd.Function):
    """As :class:`Solve`, of a kernel matrix that is not held as one tensor.

    ``apply(noise n, rhs n x m, solve, fused, *fused.arguments)`` -> n x m. Backward: one more solve and one evaluation
    of half of K, no n x n matrix.
    """

    @staticmethod
    def forward(
        ctx, noise: Tensor, rhs: Tensor, solve: Callable[[Tensor], Tensor], fused: FusedKernel, *arguments: Tensor
    ):
        solution = solve(rhs)
        ctx.solve, ctx.fused = solve, fused
        ctx.save_for_backward(noise, solution, *arguments)
        return solution

    @staticmethod
    def backward(ctx, g_solution: Tensor):  # type: ignore[override]
        noise, solution, *_ = ctx.saved_tensors
        fused: FusedKernel = ctx.fused
        if _differentiated(g_solution):
            with torch.enable_grad():
                kernel = fused.dense()
            if batched(g_solution):
                rhs_grad = _exact_inverse(kernel, noise).to(g_solution.dtype) @ g_solution
            else:
                rhs_grad = FusedSolve.apply(noise, g_solution.contiguous(), ctx.solve, fused, *fused.arguments)
            assert isinstance(rhs_grad, Tensor)
            found = _through(kernel, fused, _outer_gradient(rhs_grad, solution))
        else:
            rhs_grad = ctx.solve(g_solution.contiguous())
            found = [None] * len(fused.arguments)
            if any(ctx.needs_input_grad[4:]):
                with no_autocast():
                    found = fused.contract(-rhs_grad, solution)
        noise_grad = -(rhs_grad * solution).sum(-1) if ctx.needs_input_grad[0] else None
        return noise_grad, rhs_grad if ctx.needs_input_grad[1] else None, None, None, *found


def _parts(weight: Weight) -> tuple[Tensor | None, ...]:
    return tuple(getattr(weight, field.name) for field in fields(weight))  # type: ignore[arg-type]


def _differentiated(*gradients: Tensor) -> bool:
    """Whether the result must be a differentiable function of everything, or serve many gradients at once.

    Grad mode is on during a backward pass with create_graph only. What the solvers leave carries no graph: its gradient
    would look constant, and a second derivative would be wrong without a word.
    """
    return torch.is_grad_enabled() or any(batched(gradient) for gradient in gradients)


def _for_kernel(kernel: Tensor, thin: ThinWeight) -> Tensor:
    """The weight in factors for a fused kernel's own node; formed for any other and for leaves."""
    return UnformedWeight(thin) if takes_unformed_weights(kernel) else thin.symmetric()


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


def _through(kernel: Tensor, fused: AnyFused, weight: Tensor) -> Sequence[Tensor | None]:
    """The gradient of sum(weight * kernel) for the arguments of ``fused``, which made ``kernel``; differentiable."""
    create_graph = torch.is_grad_enabled()
    wanted = [argument for argument in fused.arguments if argument.requires_grad]
    if not wanted:
        return [None] * len(fused.arguments)
    found = iter(
        torch.autograd.grad(kernel, wanted, weight.reshape(kernel.shape), create_graph=create_graph, allow_unused=True)
    )
    return [next(found) if argument.requires_grad else None for argument in fused.arguments]
