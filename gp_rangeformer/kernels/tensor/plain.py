"""The same kernel matrix in differentiable tensor operations, for second derivatives. Many n x n temporaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.expression import Constant, Expression, Scale, Stationary, Sum
from gp_rangeformer.kernels.tensor.distances import coincident_square

_PROFILES: dict[str, Callable[[Tensor], Tensor]] = {
    "matern12": lambda r: (-r).exp(),
    "matern32": lambda r: (1 + math.sqrt(3) * r) * (-math.sqrt(3) * r).exp(),
    "matern52": lambda r: (1 + math.sqrt(5) * r + 5 / 3 * r.square()) * (-math.sqrt(5) * r).exp(),
}


def plain(
    expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype
) -> Float[Tensor, "*batch n n"]:
    """K of ``n`` points as a function of ``arguments`` that autograd can differentiate any number of times. Coordinates
    may have a batch.

    At coincident points the derivatives of a Matern kernel with respect to its inputs are taken as zero, as the host
    does.
    """
    return _matrix(expression, iter(arguments), n).to(dtype)


def _matrix(expression: Expression, arguments: Iterator[Tensor], n: int) -> Tensor:
    if isinstance(expression, Stationary):
        squares = _squared_distances(next(arguments))
        if expression.kind in ("rbf", "periodic"):
            return (-0.5 * squares).exp()
        if expression.kind == "rq":
            alpha = next(arguments).double()
            return (1 + squares / (2 * alpha)) ** -alpha
        return _PROFILES[expression.kind](_root(squares))
    if isinstance(expression, Constant):
        return next(arguments).double().reshape(1, 1).expand(n, n)
    if isinstance(expression, Scale):
        return next(arguments).double() * _matrix(expression.child, arguments, n)
    matrices = [_matrix(child, arguments, n) for child in expression.children]
    total = matrices[0]
    for matrix in matrices[1:]:
        total = total + matrix if isinstance(expression, Sum) else total * matrix
    return total


def _squared_distances(points: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n n"]:
    norms = points.square().sum(-1)
    squares = norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * points @ points.mT
    apart = squares > coincident_square(norms, points.shape[-1])
    return torch.where(apart, squares, torch.zeros_like(squares))


def _root(squares: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The square root, with derivative zero where it is zero."""
    positive = squares > 0
    return torch.where(positive, squares, torch.ones_like(squares)).sqrt() * positive
