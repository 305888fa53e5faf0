"""Products with the matrix of a stationary kernel, and its gradient, that never write an entry of it. In Triton.

Every program owns some rows, walks over the columns, computes a tile of k(q) in registers and multiplies at once: on a
GPU recomputing an entry costs about as much as reading it. Float32, with products of three TF32 terms (about float32's
own accuracy) within a tile, and float64 sums over tiles in gradients. The order of every sum is fixed: same inputs,
same bits.
"""

# Triton is only where CUDA is, and its jit gives functions a subscript.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.expression import Kind
from gp_rangeformer.kernels.gpu.profiles import CODES, numbers_of, profile, squared_distances

# Milliseconds on an H100, Matern-3/2, D = 8, 33 columns: a product at n = 32,000 with tiles of 64 x 64 5.7, 128 x 64 (8
# warps) 5.3, 64 x 32 5.8, 128 x 32 4.2; a gradient at n = 4000 and 32,000 with 64 x 64 0.41 and 8.3, 128 x 32 0.62 and
# 7.9. (A product with the dense matrix takes 2.7, making that matrix 7.7.)
_PRODUCT = {"ROWS": 128, "COLUMNS": 32, "num_warps": 4}
_GRADIENT = {"ROWS": 64, "COLUMNS": 64, "CHUNK": 32, "num_warps": 4}
_WIDEST = 64  # columns of a product that fit into registers
_WIDEST_GRADIENT = 128  # coordinates and ones of a gradient
_PROGRAMS = 1024  # enough to keep every multiprocessor of a large GPU busy; columns are split until there are as many


class PulledSums(NamedTuple):
    """Of a weight W = left right': sums over all pairs of some i and any j, without the profile's slope factor.

    ``value``: sum_ij V_ij k_ij, V = (W + W') / 2. ``slopes``: sum_j S_ij [z_j, 1] per row i, S = (W + W') * slope
    without its diagonal. ``shape``: sum_ij V_ij dk_ij/dalpha (a rational quadratic's).
    """

    value: Float64[Tensor, ""]
    slopes: Float64[Tensor, "rows d_plus_1"]
    shape: Float64[Tensor, ""]


class TritonProducts:
    """K = k(q_ij) of n points, as an operator.

    :param points: scaled coordinates z, n x D, float32, on a CUDA device.
    :param alpha: of a rational quadratic.
    :param unresolved: distance below which the slope of a Matern-1/2 kernel is held.
    """

    def __init__(self, kind: Kind, points: Float[Tensor, "n d"], alpha: float | None, unresolved: float) -> None:
        self._code = CODES[kind]
        self._points_by_row = points
        self._points = points.mT.contiguous()
        self._numbers = numbers_of(kind, alpha, unresolved, points)

    def matmul(self, vectors: Float[Tensor, "n m"], rows: slice) -> Float[Tensor, "rows m"]:
        """K[rows] @ vectors. n (2 m + 3 D) flops a row, of which the second part once for every 64 columns."""
        n, m = vectors.shape
        if m > _WIDEST:
            return torch.cat([self.matmul(part, rows) for part in vectors.split(_WIDEST, dim=1)], dim=1)
        width = max(16, triton.next_power_of_2(m))
        padded = _padded(vectors, width)
        blocks, splits, steps = _schedule(rows.stop - rows.start, n, _PRODUCT)
        out = vectors.new_empty(splits, rows.stop - rows.start, width)
        with torch.cuda.device_of(vectors):  # Triton launches on the current device, wherever the numbers are
            _multiply[(blocks, splits)](
                self._points,
                self._numbers,
                padded,
                out,
                n,
                rows.start,
                rows.stop,
                steps,
                DIMENSIONS=self._points.shape[0],
                CODE=self._code,
                WIDTH=width,
                **_PRODUCT,
            )
        return out.sum(0)[:, :m]

    def pull(self, left: Float[Tensor, "n m"], right: Float[Tensor, "n m"], rows: slice) -> PulledSums:
        """The sums that the gradient of sum_ij W_ij K_ij needs, those over i as far as ``rows`` go. n (4 m + 6 D) flops
        a row, and as many again for every 128 dimensions."""
        n, dimensions = self._points_by_row.shape
        first, second = torch.cat([left, right], dim=1), torch.cat([right, left], dim=1)
        inner = _GRADIENT["CHUNK"] * triton.cdiv(first.shape[1], _GRADIENT["CHUNK"])
        first, second = _padded(first, inner), _padded(second, inner)
        augmented = torch.cat([self._points_by_row, self._points_by_row.new_ones(n, 1)], dim=1)
        own = rows.stop - rows.start
        blocks, splits, steps = _schedule(own, n, _GRADIENT)
        sums = torch.empty(splits, 2, own, dtype=torch.float64, device=left.device)
        slopes = []
        # A piece of the coordinates at a time, which has to fit into registers: the weights are made again for each.
        for piece in augmented.split(_WIDEST_GRADIENT, dim=1):
            width = max(16, triton.next_power_of_2(piece.shape[1]))
            found = torch.empty(splits, own, width, dtype=torch.float64, device=left.device)
            with torch.cuda.device_of(left):
                _pull[(blocks, splits)](
                    self._points,
                    self._numbers,
                    first,
                    second,
                    _padded(piece, width),
                    found,
                    sums,
                    n,
                    rows.start,
                    rows.stop,
                    steps,
                    DIMENSIONS=dimensions,
                    CODE=self._code,
                    INNER=inner,
                    WIDTH=width,
                    **_GRADIENT,
                )
            slopes.append(found.sum(0)[:, : piece.shape[1]])
        # The weight of a pair was W + W'.
        value, shape = 0.5 * sums.sum((0, 2))
        return PulledSums(value, torch.cat(slopes, dim=1), shape)


def _padded(matrix: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, width - matrix.shape[1])).contiguous()


def _schedule(rows: int, n: int, shape: dict[str, int]) -> tuple[int, int, int]:
    """Row blocks, parts that the columns are split into, and column blocks in a part."""
    blocks, columns = triton.cdiv(rows, shape["ROWS"]), triton.cdiv(n, shape["COLUMNS"])
    splits = min(columns, triton.cdiv(_PROGRAMS, max(1, blocks)))
    steps = triton.cdiv(columns, splits)
    return blocks, triton.cdiv(columns, steps), steps


@triton.jit
def _multiply(
    points,
    numbers,
    vectors,
    out,
    n,
    row_start,
    row_stop,
    steps,
    DIMENSIONS: tl.constexpr,
    CODE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = row_start + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < row_stop
    entry = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for step in range(steps):
        column = (tl.program_id(1) * steps + step) * COLUMNS + tl.arange(0, COLUMNS)
        q = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        q = squared_distances(q, points + row, points + column, row_mask, column < n, n, DIMENSIONS)
        value, _, _ = profile(q, numbers, CODE)
        # Zero behind the last point, whatever the profile makes of those columns.
        block = tl.load(
            vectors + column.to(tl.int64)[:, None] * WIDTH + entry[None, :], mask=(column < n)[:, None], other=0
        )
        total = tl.dot(value, block, total, input_precision="tf32x3")
    place = (tl.program_id(1).to(tl.int64) * (row_stop - row_start) + row - row_start)[:, None] * WIDTH + entry[None, :]
    tl.store(out + place, total, mask=row_mask[:, None])


@triton.jit
def _pull(
    points,
    numbers,
    first,
    second,
    augmented,
    slopes_out,
    sums_out,
    n,
    row_start,
    row_stop,
    steps,
    DIMENSIONS: tl.constexpr,
    CODE: tl.constexpr,
    INNER: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = row_start + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < row_stop
    entry = tl.arange(0, WIDTH)
    chunk = tl.arange(0, CHUNK)
    slopes = tl.zeros((ROWS, WIDTH), dtype=tl.float64)
    values = tl.zeros((ROWS,), dtype=tl.float64)
    shapes = tl.zeros((ROWS,), dtype=tl.float64)
    for step in range(steps):
        column = (tl.program_id(1) * steps + step) * COLUMNS + tl.arange(0, COLUMNS)
        column_mask = column < n
        weight = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, INNER, CHUNK):
            one = tl.load(
                first + row.to(tl.int64)[:, None] * INNER + start + chunk[None, :], mask=row_mask[:, None], other=0
            )
            other = tl.load(
                second + column.to(tl.int64)[None, :] * INNER + start + chunk[:, None],
                mask=column_mask[None, :],
                other=0,
            )
            weight = tl.dot(one, other, weight, input_precision="tf32x3")
        q = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        q = squared_distances(q, points + row, points + column, row_mask, column_mask, n, DIMENSIONS)
        value, slope, shape_slope = profile(q, numbers, CODE)
        values += tl.sum(weight * value, axis=1).to(tl.float64)
        shapes += tl.sum(weight * shape_slope, axis=1).to(tl.float64)
        # Points do not move from themselves: a large entry of the diagonal would only leave rounding.
        pulled = tl.where(row[:, None] == column[None, :], 0.0, weight * slope)
        block = tl.load(
            augmented + column.to(tl.int64)[:, None] * WIDTH + entry[None, :], mask=column_mask[:, None], other=0
        )
        slopes += tl.dot(pulled, block, input_precision="tf32x3").to(tl.float64)
    part, own, place = tl.program_id(1).to(tl.int64), row_stop - row_start, row - row_start
    tl.store(slopes_out + (part * own + place)[:, None] * WIDTH + entry[None, :], slopes, mask=row_mask[:, None])
    tl.store(sums_out + 2 * part * own + place, values, mask=row_mask)
    tl.store(sums_out + (2 * part + 1) * own + place, shapes, mask=row_mask)
