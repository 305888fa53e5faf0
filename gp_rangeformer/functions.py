"""Autograd functions: the gradient of log determinants, quadratic forms and solves, from solves that are already done.

K enters as a plain tensor, so the kernel's own backward runs once, with the n x n weight dL/dK. First derivatives only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gp_rangeformer.solvers.base import Evaluation


class InvQuadLogDet(torch.autograd.Function):
    """(rhs_j' A^-1 rhs_j for every column j, log|A|) of A = K + D.

    ``apply(kernel n x n, noise n, rhs n x m, evaluate)`` -> (m, scalar), where ``evaluate()`` returns an
    :class:`~gp_rangeformer.solvers.base.Evaluation`. Backward: one n x n weight, 2 n^2 (m + probes) flops.
    """

    @staticmethod
    def forward(ctx, kernel: Tensor, noise: Tensor, rhs: Tensor, evaluate: Callable[[], Evaluation]):
        evaluation = evaluate()
        ctx.evaluation = evaluation
        logdet = rhs.new_zeros(()) if evaluation.logdet is None else rhs.new_tensor(evaluation.logdet.value)
        return evaluation.inv_quad, logdet

    @staticmethod
    @once_differentiable
    def backward(ctx, g_inv_quad: Tensor, g_logdet: Tensor):
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


class Solve(torch.autograd.Function):
    """A^-1 rhs of A = K + D. ``apply(kernel n x n, noise n, rhs n x m, solve)`` -> n x m, where ``solve(rhs)`` returns
    the solution. Backward: one more solve, with the incoming gradient as right-hand side."""

    @staticmethod
    def forward(ctx, kernel: Tensor, noise: Tensor, rhs: Tensor, solve: Callable[[Tensor], Tensor]):
        solution = solve(rhs)
        ctx.solve = solve
        ctx.save_for_backward(solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx, g_solution: Tensor):
        (solution,) = ctx.saved_tensors
        rhs_grad = ctx.solve(g_solution.contiguous())
        kernel_grad = noise_grad = None
        if ctx.needs_input_grad[0]:
            kernel_grad = -(rhs_grad @ solution.mT)
        if ctx.needs_input_grad[1]:
            noise_grad = -(rhs_grad * solution).sum(-1)
        return kernel_grad, noise_grad, rhs_grad if ctx.needs_input_grad[2] else None, None
