"""Tiles of a stationary kernel on CUDA: distances, profile and slopes in one launch, written in Triton.

:mod:`~gp_rangeformer.kernels.tensor.profiles` spells the same formulas as one tensor operation after another: on a GPU
each of those reads and writes a whole tile from memory, and this one writes only what is asked for.

Triton comes with PyTorch's CUDA builds for Linux. It compiles once per profile, precision, number of dimensions and of
outputs (not per size or hyperparameter) and keeps the result on disk.
"""

# Triton is only where CUDA is, and its jit gives functions a subscript.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.expression import Kind
from gp_rangeformer.kernels.gpu.profiles import CODES, numbers_of, profile, squared_distances
from gp_rangeformer.kernels.tiles import Block

_ROWS, _COLUMNS, _SIDE, _WARPS = 32, 128, 64, 4


class TritonTiles:
    """k(q_ij) and dk/dq of n points, tile by tile.

    :param points: scaled coordinates z, n x D, float32 or float64, on a CUDA device.
    :param alpha: of a rational quadratic.
    :param unresolved: distance below which the slope of a Matern-1/2 kernel is held.
    """

    def __init__(self, kind: Kind, points: Float[Tensor, "n d"], alpha: float | None, unresolved: float) -> None:
        self._code = CODES[kind]
        self._points = points.mT.contiguous()
        self._numbers = numbers_of(kind, alpha, unresolved, points)

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
        with torch.cuda.device_of(value):  # Triton launches on the current device, wherever the numbers are
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
                SLOPE=gradient and self._code is not CODES["rbf"],
                SHAPE_SLOPE=gradient and self._code is CODES["rq"],
                ROWS=_ROWS,
                COLUMNS=_COLUMNS,
                num_warps=_WARPS,
            )


def copy_transposed(source: Float[Tensor, "rows columns"], target: Float[Tensor, "columns rows"]) -> None:
    """target = source'; both may have any row stride. One read and one write of whole cache lines."""
    rows, columns = source.shape
    grid = (triton.cdiv(rows, _SIDE), triton.cdiv(columns, _SIDE))
    strides = source.stride(0), target.stride(0)
    with torch.cuda.device_of(source):
        _transpose[grid](source, target, rows, columns, *strides, SIDE=_SIDE, num_warps=_WARPS)


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
    SLOPE: tl.constexpr,
    SHAPE_SLOPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    q = tl.zeros((ROWS, COLUMNS), dtype=value_out.dtype.element_ty)
    row_points, column_points = points + first_row + row, points + first_column + column
    q = squared_distances(q, row_points, column_points, row < rows, column < columns, n, DIMENSIONS)
    value, slope, shape_slope = profile(q, numbers, CODE)
    target = row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(value_out + target, value, mask=inside)
    if SLOPE:
        tl.store(slope_out + target, slope, mask=inside)
    if SHAPE_SLOPE:
        tl.store(shape_slope_out + target, shape_slope, mask=inside)
