"""The operations of :mod:`gp_rangeformer.system.device_cores` in Triton: each is one launch, of one program for cores.

A core has at most 64 rows and stays in registers, in float64. Its columns are eliminated one after the other; a pivot
that is not above the floor is masked. Rows and columns behind the last are zero, and masked with them.
"""

# Triton is only where CUDA is, and its jit gives functions a subscript.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WARPS = 8
_ROWS, _PROGRAMS = 8, 128  # of sums over the rows of a block: at a time, and programs at most
_WIDE = {"ROWS": 8, "COLUMNS": 256, "num_warps": 4}
_PARTS = 32  # of a Gram matrix, which one program adds up


def conjugate(curvature: Tensor, coefficients: Tensor, status: Tensor, dtype: torch.dtype) -> Tensor:
    """See :func:`~gp_rangeformer.system.device_cores.conjugate`."""
    k, m = coefficients.shape
    parts = len(curvature)
    out = torch.empty(k, m + k, dtype=dtype, device=curvature.device)
    numbers = _numbers(0.0, 1e-300, curvature.device)
    _conjugate[(1,)](
        curvature.contiguous(), coefficients, status, numbers, out, parts, k, m, SIZE=_size(max(k, m)), num_warps=_WARPS
    )
    return out


def orthonormalise(
    products: Tensor, coefficients: Tensor, norm: Tensor, shares: Tensor, status: Tensor, dtype: torch.dtype
) -> Tensor:
    """See :func:`~gp_rangeformer.system.device_cores.orthonormalise`."""
    parts, m, _ = products.shape
    out = torch.empty(m, 2 * m, dtype=dtype, device=products.device)
    numbers = _numbers(max(torch.finfo(dtype).eps ** 1.5, 1e-14), torch.finfo(norm.dtype).tiny, products.device)
    _orthonormalise[(1,)](
        products.contiguous(),
        coefficients,
        norm,
        shares,
        status,
        numbers,
        out,
        parts,
        m,
        SIZE=_size(m),
        num_warps=_WARPS,
    )
    return out


def wide_gram(left: Tensor, right: list[Tensor]) -> Tensor:
    """See :func:`~gp_rangeformer.system.device_cores.wide_gram`."""
    n, k = left.shape
    m = sum(block.shape[1] for block in right)
    parts = min(_PARTS, triton.cdiv(n, _ROWS))
    out = torch.empty(parts, k, m, dtype=torch.float64, device=left.device)
    steps = triton.cdiv(triton.cdiv(n, _ROWS), parts)
    first, last = right[0], right[-1]  # at most two
    _wide_gram[(parts, len(right))](
        left, first, last, out, n, k, first.shape[1], m, steps, *left.stride(), *first.stride(), *last.stride(),
        ROWS=_ROWS, LEFT=_size(k), RIGHT=_size(max(first.shape[1], last.shape[1])), num_warps=_WARPS,
    )  # fmt: skip
    return out


def wide_product(matrix: Tensor, vectors: Tensor) -> Tensor:
    """See :func:`~gp_rangeformer.kernels.native.product.multiply_wide`: the products, and the squares of the rows."""
    rows, n = matrix.shape
    k = vectors.shape[1]
    out = torch.empty(rows, k + 1, dtype=torch.float64, device=matrix.device)
    _wide_product[(triton.cdiv(rows, _WIDE["ROWS"]),)](
        matrix, vectors, out, rows, n, k, matrix.stride(0), *vectors.stride(), WIDTH=_size(k + 1), **_WIDE
    )
    return out


def column_sums(rhs: Tensor, solution: Tensor, residual: Tensor, correction: Tensor, noise: Tensor) -> Tensor:
    """See :func:`~gp_rangeformer.system.device_cores.column_sums`."""
    n, m = rhs.shape
    parts = min(_PROGRAMS, triton.cdiv(n, _ROWS))
    out = torch.empty(parts, 5, m, dtype=torch.float64, device=rhs.device)
    steps = triton.cdiv(triton.cdiv(n, _ROWS), parts)
    strides = [stride for block in (rhs, solution, residual, correction) for stride in block.stride()]
    _column_sums[(parts,)](
        rhs, solution, residual, correction, noise, out, n, m, steps, *strides, noise.stride(0), ROWS=_ROWS,
        WIDTH=_size(m),
    )  # fmt: skip
    return out


def fit(images: Tensor, wanted: Tensor, norm: Tensor, rcond: float) -> Tensor:
    """See :func:`~gp_rangeformer.system.device_cores.fit`."""
    k, s, m = images.shape
    out = torch.empty(k, dtype=images.dtype, device=images.device)
    numbers = _numbers(rcond**2, torch.finfo(norm.dtype).tiny, images.device)
    _fit[(1,)](
        images.contiguous(), wanted.contiguous(), norm, numbers, out, k, s, m, SIZE=_size(k), WIDTH=_size(m),
        num_warps=_WARPS,
    )  # fmt: skip
    return out


def _size(count: int) -> int:
    return max(16, triton.next_power_of_2(count))


_known: dict[tuple[float, float, torch.device], Tensor] = {}


def _numbers(floor: float, tiny: float, device: torch.device) -> Tensor:
    """A tensor, because a Python number would reach a Triton kernel in single precision; made once."""
    key = floor, tiny, device
    if key not in _known:
        _known[key] = torch.tensor([floor, tiny], dtype=torch.float64, device="cpu").to(device)
    return _known[key]


@triton.jit
def _row_of(matrix, row, j):
    """Row j, by a sum over a mask: registers have no addresses."""
    return tl.sum(tl.where(row[:, None] == j, matrix, 0.0), axis=0)


@triton.jit
def _column_of(matrix, column, j):
    return tl.sum(tl.where(column[None, :] == j, matrix, 0.0), axis=1)


@triton.jit
def _diagonal_of(matrix, row):
    return tl.sum(tl.where(row[:, None] == row[None, :], matrix, 0.0), axis=1)


@triton.jit
def _broken(matrix):
    """How many entries are not finite: neither NaN nor infinity less itself is zero."""
    return tl.sum(tl.sum(tl.where(matrix - matrix == 0.0, 0.0, 1.0), axis=1), axis=0)


@triton.jit
def _load(source, row, column, rows, columns, stride):
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(source + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _store(target, value, row, column, rows, columns, stride):
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(target + row[:, None] * stride + column[None, :], value.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _cholesky(core, row, k, floor):
    """L, M with M L = I where columns are kept, and for every column whether its pivot is not positive though it is
    not zero."""
    factor = tl.zeros_like(core)
    inverse = tl.where(row[:, None] == row[None, :], tl.zeros_like(core) + 1.0, 0.0)
    diagonal = _diagonal_of(core, row)
    negative = tl.zeros_like(diagonal)
    for j in range(k):
        found = _column_of(core, row, j)
        pivot = tl.sum(tl.where(row == j, found, 0.0), axis=0)
        refused = tl.where(pivot <= 0.0, tl.where(diagonal != 0.0, 1.0, 0.0), 0.0)
        negative = tl.where(row == j, refused, negative)
        kept = pivot > floor
        scale = tl.where(kept, 1.0 / tl.sqrt(tl.where(kept, pivot, 1.0)), 0.0)
        found = tl.where(row >= j, found * scale, 0.0)
        core -= found[:, None] * found[None, :]
        factor = tl.where(row[None, :] == j, found[:, None], factor)
        inverse = tl.where(row[:, None] == j, inverse * scale, inverse)
        inverse -= tl.where(row > j, found, 0.0)[:, None] * _row_of(inverse, row, j)[None, :]
    return factor, inverse, tl.sum(negative, axis=0)


@triton.jit
def _product(left, right, row, k):
    """left @ right."""
    total = tl.zeros_like(left)
    for j in range(k):
        total += _column_of(left, row, j)[:, None] * _row_of(right, row, j)[None, :]
    return total


@triton.jit
def _load_sum(source, row, column, parts, rows, columns, stride):
    """The sum over the parts, each of ``rows`` rows ``stride`` apart."""
    total = _load(source, row, column, rows, columns, stride)
    for part in range(1, parts):
        total += _load(source + part * rows * stride, row, column, rows, columns, stride)
    return total


@triton.jit
def _load_status(status):
    """Read before anything else. Every warp reads for itself, and one writes: with the sums over all of them in between
    none finds what was written."""
    return tl.load(status), tl.load(status + 1), tl.load(status + 2), tl.load(status + 3)


@triton.jit
def _conjugate(curvature, coefficients, status, numbers, out, parts, k, m, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)
    floor, smallest = tl.load(numbers), tl.load(numbers + 1)
    reached, iterations, failed, largest = _load_status(status)
    core = _load_sum(curvature, row, row, parts, k, k, k)
    core = 0.5 * (core + tl.trans(core))
    _, root, negative = _cholesky(core, row, k, floor)
    failure = tl.where(_broken(core) > 0.0, 2.0, tl.where(negative > 0.0, 1.0, 0.0))
    undone = (reached < 1.0) & (failed == 0.0)
    active = undone & (failure == 0.0)
    inverse = _product(tl.trans(root), root, row, k)
    vector = _row_of(inverse, row, tl.argmax(_diagonal_of(inverse, row), axis=0))
    for _ in range(4):
        vector = tl.sum(inverse * vector[None, :], axis=1)
        vector = vector / tl.maximum(tl.sqrt(tl.sum(vector * vector, axis=0)), smallest)
    quotient = tl.sum(vector * tl.sum(inverse * vector[None, :], axis=1), axis=0)
    tl.store(status + 1, iterations + tl.where(active, 1.0, 0.0))
    tl.store(status + 2, tl.where(undone, failure, failed))
    tl.store(status + 3, tl.where(active & (quotient > largest), quotient, largest))
    sizes = _product(inverse, _load(coefficients, row, row, k, m, m), row, k)
    _store(out, tl.where(active, sizes, 0.0), row, row, k, m, m + k)
    _store(out + m, tl.where(active, inverse, 0.0), row, row, k, k, m + k)


@triton.jit
def _orthonormalise(products, coefficients, norm, shares, status, numbers, out, parts, m, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)
    inside = row < m
    floor, tiny = tl.load(numbers), tl.load(numbers + 1)
    known, _, failed, _ = _load_status(status)
    gram = _load_sum(products, row, row, parts, m, m, 2 * m)
    energy = _load_sum(products + m, row, row, parts, m, m, 2 * m)
    energy = 0.5 * (energy + tl.trans(energy))
    diagonal = _diagonal_of(energy, row)
    positive = diagonal > 0.0
    scale = tl.sqrt(tl.where(positive, diagonal, 0.0))
    inverse_scale = tl.where(positive, 1.0 / tl.where(positive, scale, 1.0), 0.0)
    factor, inverse, _ = _cholesky(energy * inverse_scale[:, None] * inverse_scale[None, :], row, m, floor)
    before = _load(coefficients, row, row, m, m, m)
    left = tl.sqrt(tl.maximum(tl.sum(before * _product(gram, before, row, m), axis=0), 0.0))
    root = tl.trans(factor) * scale[None, :]
    new = _product(root, before, row, m)
    allowed = tl.load(shares + row, mask=inside, other=1.0) * tl.load(norm + row, mask=inside, other=1.0).to(tl.float64)
    own = tl.sqrt(tl.sum(new * new, axis=0)) / tl.load(shares + m + row, mask=inside, other=1.0)
    ratio = tl.maximum(left / tl.maximum(allowed, tiny), own)
    # NaN must not look small.
    broken = _broken(energy) + _broken(gram) + tl.sum(tl.where(inside & (ratio != ratio), 1.0, 0.0), axis=0)
    worst = tl.where(broken > 0.0, float("inf"), tl.max(tl.where(inside, ratio, 0.0), axis=0))
    active = (known < 1.0) & (failed == 0.0)
    _store(coefficients, tl.where(active, new, before), row, row, m, m, m)
    tl.store(status, tl.where(active, 1.0 / worst, known))
    _store(out, tl.trans(inverse) * inverse_scale[:, None], row, row, m, m, 2 * m)
    _store(out + m, tl.trans(root), row, row, m, m, 2 * m)


@triton.jit
def _block(source, row, column, row_stride, column_stride, inside):
    found = tl.load(source + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0.0)
    return found.to(tl.float64)


@triton.jit
def _wide_gram(
    left, first, last, out, n, k, split, m, steps, left_row, left_column, first_row, first_column, last_row,
    last_column, ROWS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    own, other = tl.arange(0, LEFT), tl.arange(0, RIGHT)
    second = tl.program_id(1) > 0
    start, width, source, source_row, source_column = 0, split, first, first_row, first_column
    if second:
        start, width, source, source_row, source_column = split, m - split, last, last_row, last_column
    total = tl.zeros((LEFT, RIGHT), dtype=tl.float64)
    for step in range(steps):
        # Row after row: float64 has no product of tiles everywhere.
        for j in tl.static_range(ROWS):
            row = ((tl.program_id(0) * steps + step) * ROWS + j).to(tl.int64)
            mine, its = tl.where(row < n, k, 0), tl.where(row < n, width, 0)
            one = tl.load(left + row * left_row + own * left_column, mask=own < mine, other=0.0)
            two = tl.load(source + row * source_row + other * source_column, mask=other < its, other=0.0)
            total += one.to(tl.float64)[:, None] * two.to(tl.float64)[None, :]
    _store(out + tl.program_id(0) * k * m + start, total, own, other, k, width, m)


@triton.jit
def _wide_product(
    matrix, vectors, out, rows, n, k, matrix_row, vector_row, vector_column, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    entry = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float64)
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        tile = _block(matrix, row, column, matrix_row, 1, (row < rows)[:, None] & (column < n)[None, :])
        for j in range(k):
            own = tl.load(vectors + column.to(tl.int64) * vector_row + j * vector_column, mask=column < n, other=0.0)
            total += tl.where(entry[None, :] == j, tl.sum(tile * own[None, :], axis=1)[:, None], 0.0)
        total += tl.where(entry[None, :] == k, tl.sum(tile * tile, axis=1)[:, None], 0.0)
    _store(out, total, row, entry, rows, k + 1, k + 1)


@triton.jit
def _column_sums(
    rhs, solution, residual, correction, noise, out, n, m, steps, rhs_row, rhs_column, solution_row, solution_column,
    residual_row, residual_column, correction_row, correction_column, noise_stride, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)
    squares = tl.zeros((WIDTH,), dtype=tl.float64)
    whitened, lengths, quadratic, energy = squares, squares, squares, squares
    for step in range(steps):
        row = ((tl.program_id(0) * steps + step) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < n)[:, None] & (column < m)[None, :]
        b = _block(rhs, row, column, rhs_row, rhs_column, inside)
        x = _block(solution, row, column, solution_row, solution_column, inside)
        r = _block(residual, row, column, residual_row, residual_column, inside)
        z = _block(correction, row, column, correction_row, correction_column, inside)
        d = tl.load(noise + row * noise_stride, mask=row < n, other=1.0).to(tl.float64)
        squares += tl.sum(r * r, axis=0)
        whitened += tl.sum(r * r / d[:, None], axis=0)
        lengths += tl.sum(x * x, axis=0)
        quadratic += tl.sum((b + r) * x, axis=0)
        energy += tl.sum(r * z, axis=0)
    place = out + tl.program_id(0) * 5 * m + column
    tl.store(place, squares, mask=column < m)
    tl.store(place + m, whitened, mask=column < m)
    tl.store(place + 2 * m, lengths, mask=column < m)
    tl.store(place + 3 * m, quadratic, mask=column < m)
    tl.store(place + 4 * m, energy, mask=column < m)


@triton.jit
def _fit(images, wanted, norm, numbers, out, k, s, m, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    row, column = tl.arange(0, SIZE), tl.arange(0, WIDTH)
    floor, tiny = tl.load(numbers), tl.load(numbers + 1)
    inside = (row < k)[:, None] & (column < m)[None, :]
    length = tl.load(norm + column, mask=column < m, other=1.0).to(tl.float64)
    scale = 1.0 / tl.maximum(length, tiny)
    gram = tl.zeros((SIZE, SIZE), dtype=tl.float64)
    target = tl.zeros((SIZE,), dtype=tl.float64)
    for i in range(s):
        at = tl.load(images + row[:, None] * (s * m) + i * m + column[None, :], mask=inside, other=0.0)
        at = at.to(tl.float64) * scale[None, :]
        goal = tl.load(wanted + i * m + column, mask=column < m, other=0.0).to(tl.float64) * scale
        target += tl.sum(at * goal[None, :], axis=1)
        for j in range(k):
            along = tl.sum(at * _row_of(at, row, j)[None, :], axis=1)
            gram += tl.where(row[None, :] == j, along[:, None], 0.0)
    lengths = tl.maximum(tl.sqrt(_diagonal_of(gram, row)), tiny)
    _, inverse, _ = _cholesky(gram / lengths[:, None] / lengths[None, :], row, k, floor)
    half = tl.sum(inverse * (target / lengths)[None, :], axis=1)
    found = tl.sum(tl.trans(inverse) * half[None, :], axis=1) / lengths
    broken = tl.sum(tl.where((row < k) & (found - found != 0.0), 1.0, 0.0), axis=0)
    tl.store(out + row, tl.where(broken > 0.0, 0.0, found).to(out.dtype.element_ty), mask=row < k)
