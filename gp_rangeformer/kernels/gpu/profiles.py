"""Stationary kernels as functions of the squared scaled distance q, inside Triton kernels.

The formulas of :mod:`~gp_rangeformer.kernels.tensor.profiles`, in registers. Distances are sums of squared differences
of coordinates, which need no clamp and lose nothing where points are close.
"""

# Triton is only where CUDA is, and its jit gives functions a subscript.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gp_rangeformer.kernels.expression import Kind

_RBF, _MATERN12, _MATERN32, _MATERN52, _RQ = (tl.constexpr(code) for code in range(5))
CODES: dict[Kind, tl.constexpr] = {
    "rbf": _RBF,
    "periodic": _RBF,  # of points on circles
    "matern12": _MATERN12,
    "matern32": _MATERN32,
    "matern52": _MATERN52,
    "rq": _RQ,
}
_RATES: dict[Kind, float] = {"matern32": math.sqrt(3), "matern52": math.sqrt(5)}


def numbers_of(kind: Kind, alpha: float | None, unresolved: float, like: Tensor) -> Tensor:
    """What a profile depends on, in dtype and on the device of ``like``. A tensor, because a Python number would reach
    a Triton kernel in single precision."""
    numbers = (_RATES.get(kind, 1.0), 1.0 if alpha is None else alpha, unresolved)
    return torch.tensor(numbers, dtype=torch.float64, device="cpu").to(like.device, like.dtype)


@triton.jit
def squared_distances(q, row_points, column_points, row_mask, column_mask, n, DIMENSIONS: tl.constexpr):
    """q + |z_i - z_j|^2; coordinates are stored one dimension after another, n numbers each."""
    for _ in range(DIMENSIONS):
        left = tl.load(row_points, mask=row_mask, other=0)
        right = tl.load(column_points, mask=column_mask, other=0)
        difference = left[:, None] - right[None, :]
        q += difference * difference
        row_points += n
        column_points += n
    return q


@triton.jit
def profile(q, numbers, CODE: tl.constexpr):
    """k(q), dk/dq up to the profile's slope factor, and dk/dalpha (of a rational quadratic; else anything)."""
    rate = tl.load(numbers)
    alpha = tl.load(numbers + 1)
    unresolved = tl.load(numbers + 2)
    if CODE == _RBF:
        value = tl.exp(-0.5 * q)
        slope = value
        shape_slope = value
    elif CODE == _RQ:
        u = q / (2 * alpha)
        b = 1 + u
        # log(1 + u) to the last bits: the rounding of b is divided out again.
        rounded = b - 1
        log_b = tl.where(rounded == 0, u, tl.log(b) * (u / tl.where(rounded == 0, 1, rounded)))
        value = tl.exp(-alpha * log_b)
        slope = value / b
        shape_slope = value * (u / b - log_b)
    else:
        a = rate * tl.sqrt(q)
        exponential = tl.exp(-a)
        shape_slope = exponential
        if CODE == _MATERN12:
            value = exponential
            slope = tl.where(a > 0, exponential / tl.maximum(a, unresolved), 0.0)  # as tensor.profiles has it
        elif CODE == _MATERN32:
            value = (1 + a) * exponential
            slope = exponential
        else:
            slope = (1 + a) * exponential
            value = slope + a * a / 3 * exponential
    return value, slope, shape_slope
