"""A kernel matrix that is recomputed, or made in parts, against the same one held as a tensor."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gp_rangeformer.kernels.evaluate import evaluate_rows
from gp_rangeformer.kernels.matrices.sharded import row_bounds
from gp_rangeformer.kernels.tiles import tile_size
from gp_rangeformer.system.kernel_matrix import DenseKernelMatrix, KernelMatrix
from tests.kernels.market import KERNELS, make, points, recognised

TILE = tile_size(torch.device("cpu"))
SIZE = 2 * TILE + 37  # the last tiles are not full
EPS = {torch.float32: 2e-6, torch.float64: 4e-15}

names = pytest.mark.parametrize("name", sorted(KERNELS))
dtypes = pytest.mark.parametrize("dtype", EPS, ids=["float32", "float64"])


def matrices(name: str, dtype: torch.dtype) -> tuple[KernelMatrix, Tensor]:
    """Recomputed, and dense; some of the points coincide."""
    x = points(SIZE, dtype)
    x[TILE : TILE + 9] = x[:9]
    fused = recognised(make(name, dtype), x)
    return fused.recomputed(), fused.dense().detach()


def vectors(k: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(SIZE, k, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


@dtypes
@names
def test_products_are_those_of_the_dense_matrix(name: str, dtype: torch.dtype) -> None:
    recomputed, dense = matrices(name, dtype)
    rhs = vectors(5, dtype)
    scale = float((dense.abs() @ rhs.abs()).max())
    assert float((recomputed.matmul(rhs) - dense @ rhs).abs().max()) < EPS[dtype] * scale


@dtypes
@names
def test_columns_are_those_of_the_dense_matrix_in_any_order_and_where_points_coincide(
    name: str, dtype: torch.dtype
) -> None:
    recomputed, dense = matrices(name, dtype)
    index = torch.tensor([5, SIZE - 1, TILE - 1, TILE, 0, TILE + 5, 301])
    found = recomputed.columns(index)
    assert float((found - dense[:, index]).abs().max()) < EPS[dtype] * float(dense.abs().max())
    # a point and itself: no distance, not even the rounding of one
    assert torch.equal(found[index, torch.arange(len(index))], dense.diagonal()[index])


def test_more_columns_than_a_tile_is_wide_are_found() -> None:
    recomputed, dense = matrices("matern32", torch.float64)
    index = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))[: TILE + 3]
    torch.testing.assert_close(recomputed.columns(index), dense[:, index], rtol=0, atol=1e-14)


@dtypes
@names
def test_diagonal_and_dense_form_have_the_bits_of_the_dense_matrix(name: str, dtype: torch.dtype) -> None:
    recomputed, dense = matrices(name, dtype)
    assert torch.equal(recomputed.diagonal(), dense.diagonal())
    assert torch.equal(recomputed.to_dense(dtype), dense)
    assert recomputed.to_dense(torch.float64).dtype == torch.float64


@names
def test_the_diagonal_has_the_gradient_of_the_dense_diagonal(name: str) -> None:
    kernel = make(name)
    fused = recognised(kernel, points(20))
    found = fused.diagonal()
    expected: Any = kernel(points(20), diag=True)
    torch.testing.assert_close(found, expected)
    parameters = list(kernel.parameters())
    ours = torch.autograd.grad(found.sum(), parameters, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected.sum() + 0 * sum(p.sum() for p in parameters), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@names
def test_rows_have_the_bits_of_the_dense_matrix(name: str) -> None:
    fused = recognised(make(name, torch.float32), points(SIZE, torch.float32))
    dense = fused.dense().detach()
    for rows in (slice(0, TILE), slice(TILE, SIZE), slice(2 * TILE, SIZE), slice(TILE, TILE)):
        assert torch.equal(evaluate_rows(fused.expression, fused.arguments, SIZE, torch.float32, rows), dense[rows])


def test_infinities_and_nan_are_noticed() -> None:
    for bad in (float("nan"), float("inf")):
        x = points(SIZE)
        assert recognised(make("matern32"), x).recomputed().is_finite()
        x[TILE, 1] = bad
        assert not recognised(make("matern32"), x).recomputed().is_finite()


def test_both_ways_are_kernel_matrices_and_only_one_is_held() -> None:
    recomputed, dense = matrices("rbf", torch.float64)
    assert isinstance(recomputed, KernelMatrix)
    assert isinstance(DenseKernelMatrix(dense), KernelMatrix)
    assert not recomputed.held_dense
    assert DenseKernelMatrix(dense).held_dense


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 2000])
def test_rows_are_dealt_out_in_whole_tiles_and_evenly(n: int, count: int) -> None:
    bounds = row_bounds(n, 256, count)
    assert bounds[0] == 0
    assert bounds[-1] == n
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    assert all(start % 256 == 0 or start == n for start in bounds)
    assert max(sizes) <= -(-n // 256 // count) * 256 + 256
    assert min(sizes) >= 0
