"""Derivatives of K times a vector, for every parameter of the kernel at once.

What a parameter moves is written down first (coordinates of the points, or a scalar of a node); then one pass of
compiled code over the pairs of points answers for all parameters, or, without it, two products a parameter with K at
arguments moved a little either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.bind import bind
from gp_rangeformer.kernels.expression import Expression, Stationary
from gp_rangeformer.kernels.matrices.recomputed import RecomputedKernelMatrix
from gp_rangeformer.kernels.native.derivatives import derive
from gp_rangeformer.kernels.native.tiles import NativeTiles

# Of a relative move of coordinates: central differences leave its square, and rounding over it.
_STEP = {torch.float32: 1e-2, torch.float64: 1e-4}


@dataclass(frozen=True)
class Move:
    """What an element of a parameter does to an argument: the rate of a scalar, or of a coordinate, which is ``rate``
    times the coordinate itself or times what is ``along``, n numbers."""

    argument: int
    rate: float
    coordinate: int | None = None
    along: Float64[Tensor, " n"] | None = None


def parameter_products(
    expression: Expression,
    arguments: tuple[Tensor, ...],
    parameters: tuple[Tensor, ...],
    n: int,
    dtype: torch.dtype,
    vector: Float[Tensor, " n"],
) -> Float64[Tensor, "n p"]:
    """dK/dp @ vector for every element p of ``parameters`` that asks for a gradient, one after the other; zero columns
    for the others. Without a graph.

    Compiled: one evaluation of K, and 3 n^2 flops a coordinate, to the rounding of ``dtype``. Else 2 p products, to
    about 1e-3 in float32.

    :param arguments: of :func:`~gp_rangeformer.kernels.embedding.embed`, with their graph: a periodic kernel's
        parameters are asked through it.
    """
    moves = parameter_moves(expression, arguments, parameters)
    with torch.no_grad():
        arguments = tuple(argument.detach() for argument in arguments)
        tiles = bind(expression, arguments, n, dtype, 1)
        if isinstance(tiles, NativeTiles):
            return _in_one_pass(tiles, moves, vector)
        return _by_differences(expression, arguments, n, dtype, moves, vector)


def parameter_moves(
    expression: Expression, arguments: tuple[Tensor, ...], parameters: tuple[Tensor, ...]
) -> list[list[Move]]:
    """What every element of ``parameters`` moves, in their order; nothing where no gradient is asked for."""
    numbered = iter(enumerate(arguments))
    return list(_moves(expression, numbered, iter(parameters)))


def _moves(
    expression: Expression, arguments: Iterator[tuple[int, Tensor]], parameters: Iterator[Tensor]
) -> Iterator[list[Move]]:
    own = [next(parameters) for _ in expression.own_names]
    if isinstance(expression, Stationary):
        number, points = next(arguments)
        lengthscale, *others = own
        if expression.kind == "periodic":
            for parameter in own:
                yield from _moves_on_circles(number, points, parameter)
            return
        yield from _moves_of_scales(number, points.shape[1], lengthscale)
        own = others
    for parameter in own:
        number, _ = next(arguments)
        yield [Move(number, 1.0)] if parameter.requires_grad else []
    for child in expression.children:
        yield from _moves(child, arguments, parameters)


def _moves_of_scales(number: int, dimensions: int, lengthscale: Tensor) -> Iterator[list[Move]]:
    """z = x / lengthscale."""
    scales = lengthscale.detach().double().reshape(-1).tolist()
    for index, scale in enumerate(scales):
        moved = range(dimensions) if len(scales) == 1 else [index]
        yield [Move(number, -1 / scale, c) for c in moved] if lengthscale.requires_grad else []


def _moves_on_circles(number: int, points: Tensor, parameter: Tensor) -> Iterator[list[Move]]:
    """By differentiating, with respect to its weights, a weighted sum's derivative."""
    if not parameter.requires_grad:
        yield from ([] for _ in range(parameter.numel()))
        return
    with torch.enable_grad():
        weights = torch.zeros_like(points, requires_grad=True)
        (slopes,) = torch.autograd.grad(points, parameter, weights, create_graph=True)
        for slope in slopes.reshape(-1):
            (rates,) = torch.autograd.grad(slope, weights, retain_graph=True)
            yield [Move(number, 1.0, c, column) for c, column in enumerate(rates.unbind(1)) if column.any()]


def _in_one_pass(tiles: NativeTiles, moves: list[list[Move]], vector: Tensor) -> Float64[Tensor, "n p"]:
    coordinates = [move for own in moves for move in own if move.coordinate is not None]
    sums, scalars = derive(tiles, [(m.argument, m.coordinate or 0, m.along) for m in coordinates], vector)
    rows = iter(sums)
    out = sums.new_zeros(len(moves), tiles.size)
    for row, own in zip(out, moves, strict=True):
        for move in own:
            if move.coordinate is None:
                row.add_(scalars[tiles.argument_nodes[move.argument]], alpha=move.rate)
            else:
                row.add_(next(rows), alpha=2 * move.rate)
    return out.mT


def _by_differences(
    expression: Expression,
    arguments: tuple[Tensor, ...],
    n: int,
    dtype: torch.dtype,
    moves: list[list[Move]],
    vector: Tensor,
) -> Float64[Tensor, "n p"]:
    column = vector.to(dtype).unsqueeze(-1)
    out = torch.zeros(n, len(moves), dtype=torch.float64, device=vector.device)
    for target, own in zip(out.unbind(1), moves, strict=True):
        for move in own:  # of different coordinates: what they add up to is linear
            step = _step(arguments[move.argument], move, dtype)
            for signed in (step, -step):
                moved = list(arguments)
                moved[move.argument] = _moved(arguments[move.argument], move, signed)
                product = RecomputedKernelMatrix(expression, tuple(moved), n, dtype).matmul(column).squeeze(-1)
                target.add_(product.double(), alpha=0.5 / signed)
    return out


def _step(argument: Tensor, move: Move, dtype: torch.dtype) -> float:
    """Of the parameter: it moves a scalar by a share of itself, coordinates by one of their spread."""
    size = argument.abs().max().item() if move.coordinate is None else argument[:, move.coordinate].std().item()
    along = argument if move.coordinate is None else argument[:, move.coordinate]
    rate = abs(move.rate) * (1.0 if move.coordinate is None else (along if move.along is None else move.along).std())
    return _STEP[dtype] * max(size, 1e-30) / max(float(rate), 1e-30)


def _moved(argument: Tensor, move: Move, step: float) -> Tensor:
    if move.coordinate is None:
        return argument + step * move.rate
    moved = argument.clone()
    column = moved[:, move.coordinate]
    column.add_(column.clone() if move.along is None else move.along, alpha=step * move.rate)
    return moved
