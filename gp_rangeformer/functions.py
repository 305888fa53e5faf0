"""Autograd functions: the gradient of log determinants, quadratic forms and solves, from solves that are already done.

K enters as a plain tensor, so the kernel's own backward runs once, with the n x n weight dL/dK; or as a fused kernel,
which contracts the weight's thin factors itself. Second derivatives (``create_graph=True``) are the exact ones: they
cost an inverse, and are rarely asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.solvers.base import Evaluation
from gp_rangeformer.solvers.gradient_weight import thin_diagonal


class InvQuadLogDet(torch.autograd.Function):
    """(rhs_j' A^-1 rhs_j for every column j, log|A|) of A = K + D.

    ``apply(kernel n x n, noise n, rhs n x m, evaluate)`` -> (m, scalar), where ``evaluate()`` returns an
    :class:`~gp_rangeformer.solvers.base.Evaluation`. Backward: one n x n weight, 2 n^2 (m + probes) flops.
    """

    @staticmethod
    def forward(ctx, kernel: Tensor, noise: Tensor, rhs: Tensor, evaluate: Callable[[], Evaluation]):
        evaluation = evaluate()
        ctx.evaluation = evaluation
        ctx.save_for_backward(kernel, noise, rhs)
        return _outputs(evaluation, rhs)

    @staticmethod
    def backward(ctx, g_inv_quad: Tensor, g_logdet: Tensor):  # type: ignore[override]
        # Grad mode is on during a backward pass with create_graph only. The evaluation's tensors carry no graph: its
        # gradient would look constant, and a second derivative would be wrong without a word.
        if torch.is_grad_enabled():
            kernel, noise, rhs = ctx.saved_tensors
            return *_differentiable_gradient(kernel, noise, rhs, g_inv_quad, g_logdet), None
        evaluation: Evaluation = ctx.evaluation
        kernel_grad = noise_grad = rhs_grad = None
        if ctx.needs_input_grad[0]:
            kernel_grad = evaluation.kernel_gradient(g_inv_quad, g_logdet)
        if ctx.needs_input_grad[1]:
            noise_grad = (
                kernel_grad.diagonal() if kernel_grad is not None else evaluation.noise_gradient(g_inv_quad, g_logdet)
            )
        if ctx.needs_input_grad[2]:
            rhs_grad = 2 * g_inv_quad * evaluation.solution.value
        return kernel_grad, noise_grad, rhs_grad, None


class FusedInvQuadLogDet(torch.autograd.Function):
    """As :class:`InvQuadLogDet`, of a kernel matrix that a :class:`~gp_rangeformer.kernels.fused.FusedKernel` made.

    ``apply(noise n, rhs n x m, evaluate, fused, *fused.arguments)`` -> (m, scalar). Backward: one evaluation of half of
    K, 2 n^2 (m + probes) flops, and no n x n matrix where the evaluation has thin factors.
    """

    @staticmethod
    def forward(
        ctx, noise: Tensor, rhs: Tensor, evaluate: Callable[[], Evaluation], fused: FusedKernel, *arguments: Tensor
    ):
        evaluation = evaluate()
        ctx.evaluation, ctx.fused = evaluation, fused
        ctx.save_for_backward(noise, rhs)
        return _outputs(evaluation, rhs)

    @staticmethod
    def backward(ctx, g_inv_quad: Tensor, g_logdet: Tensor):  # type: ignore[override]
        noise, rhs = ctx.saved_tensors
        fused: FusedKernel = ctx.fused
        if torch.is_grad_enabled():
            kernel = fused.dense()
            weight, noise_grad, rhs_grad = _differentiable_gradient(kernel, noise, rhs, g_inv_quad, g_logdet)
            found = torch.autograd.grad(kernel, fused.arguments, weight, create_graph=True, allow_unused=True)
            return noise_grad, rhs_grad, None, None, *found
        evaluation: Evaluation = ctx.evaluation
        found = [None] * len(fused.arguments)
        noise_grad = None
        if any(ctx.needs_input_grad[4:]):
            if evaluation.thin_gradient is not None:
                left, right, diagonal = evaluation.thin_gradient(g_inv_quad, g_logdet)
                found = fused.contract(left, right, diagonal)
                noise_grad = thin_diagonal(left, right, diagonal) if ctx.needs_input_grad[0] else None
            else:
                weight = evaluation.kernel_gradient(g_inv_quad, g_logdet)
                noise_grad = weight.diagonal().clone()
                found = fused.contract_dense(weight)
        if ctx.needs_input_grad[0] and noise_grad is None:
            noise_grad = evaluation.noise_gradient(g_inv_quad, g_logdet)
        rhs_grad = 2 * g_inv_quad * evaluation.solution.value if ctx.needs_input_grad[1] else None
        return noise_grad, rhs_grad, None, None, *found


def _outputs(evaluation: Evaluation, rhs: Tensor) -> tuple[Tensor, Tensor]:
    logdet = rhs.new_zeros(()) if evaluation.logdet is None else rhs.new_tensor(evaluation.logdet.value)
    # A clone: the output refers to its node, which must not refer back through the evaluation, or the n x n factors
    # of every step would wait for the garbage collector.
    return evaluation.inv_quad.clone(), logdet


def _differentiable_gradient(
    kernel: Tensor, noise: Tensor, rhs: Tensor, g_inv_quad: Tensor, g_logdet: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The exact gradient as a differentiable function of everything it depends on. O(n^3), in float64."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel.double() + noise.double().diag_embed()))
    solution = inverse @ rhs.double()
    scaled = solution * g_inv_quad.double()
    weight = g_logdet.double() * inverse - scaled @ solution.mT
    return weight.to(kernel.dtype), weight.diagonal().to(noise.dtype), (2 * scaled).to(rhs.dtype)


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
        # apply, not solve: with create_graph this pass is itself differentiated.
        rhs_grad = Solve.apply(kernel, noise, g_solution.contiguous(), ctx.solve)
        kernel_grad = noise_grad = None
        if ctx.needs_input_grad[0]:
            # Symmetric, as the host's: K is, and a caller may hold it as a leaf.
            outer = rhs_grad @ solution.mT
            kernel_grad = -0.5 * (outer + outer.mT)
        if ctx.needs_input_grad[1]:
            noise_grad = -(rhs_grad * solution).sum(-1)
        return kernel_grad, noise_grad, rhs_grad if ctx.needs_input_grad[2] else None, None


class FusedSolve(torch.autograd.Function):
    """As :class:`Solve`, of a kernel matrix that a :class:`~gp_rangeformer.kernels.fused.FusedKernel` made.

    ``apply(noise n, rhs n x m, solve, fused, *fused.arguments)`` -> n x m. Backward: one more solve and one evaluation
    of half of K, no n x n matrix.
    """

    @staticmethod
    def forward(
        ctx, noise: Tensor, rhs: Tensor, solve: Callable[[Tensor], Tensor], fused: FusedKernel, *arguments: Tensor
    ):
        solution = solve(rhs)
        ctx.solve, ctx.fused = solve, fused
        ctx.save_for_backward(noise, solution)
        return solution

    @staticmethod
    def backward(ctx, g_solution: Tensor):  # type: ignore[override]
        noise, solution = ctx.saved_tensors
        fused: FusedKernel = ctx.fused
        # As in Solve: with create_graph this pass is itself differentiated.
        rhs_grad = FusedSolve.apply(noise, g_solution.contiguous(), ctx.solve, fused, *fused.arguments)
        assert isinstance(rhs_grad, Tensor)
        found: Sequence[Tensor | None] = [None] * len(fused.arguments)
        if torch.is_grad_enabled():
            outer = rhs_grad @ solution.mT
            weight = -0.5 * (outer + outer.mT)
            found = torch.autograd.grad(fused.dense(), fused.arguments, weight, create_graph=True, allow_unused=True)
        elif any(ctx.needs_input_grad[4:]):
            found = fused.contract(-rhs_grad, solution)
        noise_grad = -(rhs_grad * solution).sum(-1) if ctx.needs_input_grad[0] else None
        return noise_grad, rhs_grad if ctx.needs_input_grad[1] else None, None, None, *found
