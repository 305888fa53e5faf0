"""Classical solvers of batches of small dense systems, each with a fixed number of steps and zero as the start."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def gradient_descent(
    matrix: Float[Tensor, "*b n n"], rhs: Float[Tensor, "*b n"], steps: int, smallest: float, largest: float
) -> Float[Tensor, "*b n"]:
    """``steps`` of x += eta (b - A x), with the best fixed eta for a spectrum in [smallest, largest].

    eta = 2 / (smallest + largest) minimises max |1 - eta lambda|, the degree-1 Chebyshev problem: the error falls by
    (c - 1) / (c + 1) per step, c the condition number. O(steps n^2) each.

    :raises ValueError: if the interval is not 0 < smallest <= largest.
    """
    if not 0 < smallest <= largest:
        raise ValueError(f"the spectrum must lie in 0 < smallest <= largest, got {smallest} and {largest}")
    eta = 2 / (smallest + largest)
    solution = torch.zeros_like(rhs)
    for _ in range(steps):
        solution = solution + eta * (rhs - _multiply(matrix, solution))
    return solution


def conjugate_gradients(
    matrix: Float[Tensor, "*b n n"], rhs: Float[Tensor, "*b n"], steps: int
) -> Float[Tensor, "*b n"]:
    """``steps`` of Hestenes and Stiefel's method; a system that is solved stays as it is. O(steps n^2) each."""
    solution, residual = torch.zeros_like(rhs), rhs
    direction = residual
    squared = residual.square().sum(-1, keepdim=True)
    for _ in range(steps):
        image = _multiply(matrix, direction)
        solution_step = _ratio(squared, (direction * image).sum(-1, keepdim=True))
        solution = solution + solution_step * direction
        residual = residual - solution_step * image
        previous, squared = squared, residual.square().sum(-1, keepdim=True)
        direction = residual + _ratio(squared, previous) * direction
    return solution


def exact(matrix: Float[Tensor, "*b n n"], rhs: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """Cholesky in the dtype of the input, O(n^3) each.

    :raises torch.linalg.LinAlgError: if a matrix is not positive definite.
    """
    return torch.cholesky_solve(rhs.unsqueeze(-1), torch.linalg.cholesky(matrix)).squeeze(-1)


def _multiply(matrix: Float[Tensor, "*b n n"], vector: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _ratio(numerator: Float[Tensor, "*b 1"], denominator: Float[Tensor, "*b 1"]) -> Float[Tensor, "*b 1"]:
    """0 where the denominator is not positive: the residual has vanished."""
    return torch.where(denominator > 0, numerator / denominator, torch.zeros_like(numerator))
