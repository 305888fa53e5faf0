"""Tiles of a stationary kernel on CUDA: distances, profile and slopes in one launch, written in Triton.

The same formulas as :mod:`~gp_rangeformer.kernels.profiles`, which spells them as one tensor operation after another:
on a GPU each of those reads and writes a whole tile from memory, and this one writes only what is asked for. Distances
are sums of squared differences of coordinates, which need no clamp and lose nothing where points are close.

Triton comes with PyTorch's CUDA builds for Linux. It compiles once per profile, precision, number of dimensions and of
outputs (not per size or hyperparameter) and keeps the result on disk.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.expression import Kind
from gp_rangeformer.kernels.tiles import Block

_ROWS, _COLUMNS, _SIDE, _WARPS = 32, 128, 64, 4

_RBF, _MATERN12, _MATERN32, _MATERN52, _RQ = (tl.constexpr(code) for code in range(5))
_CODES: dict[Kind, tl.constexpr] = {
    "rbf": _RBF,
    "periodic": _RBF,  # of points on circles
    "matern12": _MATERN12,
    "matern32": _MATERN32,
    "matern52": _MATERN52,
    "rq": _RQ,
}
_RATES: dict[Kind, float] = {"matern32": math.sqrt(3), "matern52": math.sqrt(5)}


class TritonTiles:
    """k(q_ij) and dk/dq of n points, tile by tile.

    :param points: scaled coordinates z, n x D, float32 or float64, on a CUDA device.
    :param alpha: of a rational quadratic.
    :param unresolved: distance below which the slope of a Matern-1/2 kernel is held.
    """

    def __init__(self, kind: Kind, points: Float[Tensor, "n d"], alpha: float | None, unresolved: float) -> None:
        self._code = _CODES[kind]
        self._points = points.mT.contiguous()
        # As a tensor: a Python number would reach the kernel in single precision.
        numbers = (_RATES.get(kind, 1.0), 1.0 if alpha is None else alpha, unresolved)
        self._numbers = torch.tensor(numbers, dtype=torch.float64).to(points.device, points.dtype)

    def value(self, block: Block, out: Float[Tensor, "rows columns"]) -> None:
        """out = k(q); ``out`` may have any row stride."""
        self._launch(block, out, out, out, gradient=False)

    def open(
        self,
        block: Block,
        value: Float[Tensor, "rows columns"],
        slope: Float[Tensor, "rows columns"],
        shape_slope: Float[Tensor, "rows columns"],
    ) -> None:
        """k(q), dk/dq up to the profile's slope factor, and dk/dalpha of a rational quadratic (else untouched). The
        three have the same row stride; an RBF's slope is its value, and is not written."""
        self._launch(block, value, slope, shape_slope, gradient=True)

    def _launch(self, block: Block, value: Tensor, slope: Tensor, shape_slope: Tensor, *, gradient: bool) -> None:
        rows, columns = block.shape
        dimensions, n = self._points.shape
        grid = (triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS))
        _tile[grid](
            self._points,
            self._numbers,
            value,
            slope,
            shape_slope,
            n,
            block.rows.start,
            block.columns.start,
            rows,
            columns,
            value.stride(0),
            DIMENSIONS=dimensions,
            CODE=self._code,
            GRADIENT=gradient,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            num_warps=_WARPS,
        )


def copy_transposed(source: Float[Tensor, "rows columns"], target: Float[Tensor, "columns rows"]) -> None:
    """target = source'; both may have any row stride. One read and one write of whole cache lines."""
    rows, columns = source.shape
    grid = (triton.cdiv(rows, _SIDE), triton.cdiv(columns, _SIDE))
    _transpose[grid](source, target, rows, columns, source.stride(0), target.stride(0), SIDE=_SIDE, num_warps=_WARPS)


@triton.jit
def _transpose(source, target, rows, columns, source_stride, target_stride, SIDE: tl.constexpr):
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(source + row.to(tl.int64)[:, None] * source_stride + column[None, :], mask=inside)
    tl.store(
        target + column.to(tl.int64)[:, None] * target_stride + row[None, :], tl.trans(tile), mask=tl.trans(inside)
    )


@triton.jit
def _tile(
    points,
    numbers,
    value_out,
    slope_out,
    shape_slope_out,
    n,
    first_row,
    first_column,
    rows,
    columns,
    stride,
    DIMENSIONS: tl.constexpr,
    CODE: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    rate = tl.load(numbers)
    alpha = tl.load(numbers + 1)
    unresolved = tl.load(numbers + 2)
    q = tl.zeros((ROWS, COLUMNS), dtype=value_out.dtype.element_ty)
    row_points = points + first_row + row
    column_points = points + first_column + column
    for _ in range(DIMENSIONS):
        left = tl.load(row_points, mask=row < rows, other=0)
        right = tl.load(column_points, mask=column < columns, other=0)
        difference = left[:, None] - right[None, :]
        q += difference * difference
        row_points += n
        column_points += n

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
            slope = exponential / tl.maximum(a, unresolved)
        elif CODE == _MATERN32:
            value = (1 + a) * exponential
            slope = exponential
        else:
            slope = (1 + a) * exponential
            value = slope + a * a / 3 * exponential

    target = row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(value_out + target, value, mask=inside)
    if GRADIENT:
        if CODE != _RBF:
            tl.store(slope_out + target, slope, mask=inside)
        if CODE == _RQ:
            tl.store(shape_slope_out + target, shape_slope, mask=inside)
