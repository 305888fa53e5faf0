"""Products in float64 with matrices of any precision, and the norms of their rows, against exact sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from gp_rangeformer import settings
from gp_rangeformer.kernels.matrices.sharded import ProcessShare, ShardedKernelMatrix
from gp_rangeformer.kernels.native.compiler import native_library
from gp_rangeformer.kernels.native.product import multiply_wide
from gp_rangeformer.kernels.native.tiles import NativeTiles
from gp_rangeformer.system.kernel_matrix import DenseKernelMatrix, KernelMatrix
from tests.kernels.market import make, points, recognised
from tests.kernels.rounding import of_sum

DTYPES = [torch.float32, torch.float64]
needs_library = pytest.mark.skipif(native_library() is None, reason="nothing here compiles C++")
ways = pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_library), False])


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def check(matrix: Tensor, vectors: Tensor, product: Tensor, squares: Tensor) -> None:
    """Against dense float64 sums, which may err as much."""
    wide = matrix.double()
    bound = 2 * of_sum(matrix.shape[1], torch.float64)
    assert product.dtype == squares.dtype == torch.float64
    assert bool(((product - wide @ vectors).abs() <= bound * (wide.abs() @ vectors.abs())).all())
    assert bool(((squares - wide.square().sum(1)).abs() <= bound * squares).all())


@ways
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 7), (4, 8), (9, 300), (70, 2048), (33, 4109)])
def test_products_and_norms_are_rounded_as_float64_ones(rows, n, k, dtype, compiled, two_threads) -> None:
    matrix, vectors = random(rows, n, dtype=dtype), random(n, k)
    with settings.fused_kernels("compiled" if compiled else "tensors"):
        check(matrix, vectors, *multiply_wide(matrix, vectors))


@ways
def test_a_float32_matrix_loses_nothing(compiled) -> None:
    """1 + 2^-23 of each entry, which a product in float32 would drop."""
    matrix = torch.full((40, 1000), 1 + 2.0**-23)
    vectors = torch.tensor([1.0, -1.0] * 500, dtype=torch.float64).unsqueeze(1) + 2.0**-40
    with settings.fused_kernels("compiled" if compiled else "tensors"):
        product, squares = multiply_wide(matrix, vectors)
    assert product.flatten().tolist() == pytest.approx([1000 * (1 + 2.0**-23) * 2.0**-40] * 40, rel=1e-9)
    assert squares.tolist() == pytest.approx([1000 * (1 + 2.0**-23) ** 2] * 40, rel=1e-13)


@ways
def test_operands_with_any_strides_give_the_same_product(compiled) -> None:
    square = random(301, 301, dtype=torch.float32)
    operands = [square.mT, torch.cat([square, square], 1)[:, 3:304], square[::3], square[:, ::2]]
    with settings.fused_kernels("compiled" if compiled else "tensors"):
        for operand in operands:
            n = operand.shape[1]
            for vectors in (random(n, 3), random(3, n).mT, random(n, 6)[:, ::2]):
                check(operand, vectors, *multiply_wide(operand, vectors))


@ways
def test_not_a_number_stays_in_its_row(compiled) -> None:
    matrix = random(50, 300, dtype=torch.float32)
    matrix[7, 299] = float("nan")
    matrix[8, 0] = float("inf")
    with settings.fused_kernels("compiled" if compiled else "tensors"):
        product, squares = multiply_wide(matrix, torch.ones(300, 1, dtype=torch.float64))
    finite = product.flatten().isfinite()
    assert torch.equal(finite, squares.isfinite())
    assert (~finite).nonzero().flatten().tolist() == [7, 8]


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_same_bits_alone_in_any_part_and_made_on_the_way(dtype, two_threads) -> None:
    n = 2311
    fused = recognised(make("scaled_sum", dtype), points(n, dtype))
    dense, vectors = fused.dense().detach(), random(n, 2)
    library = native_library()
    assert library is not None
    product, squares = multiply_wide(dense, vectors)
    for start, stop in ((0, 1), (5, 12), (96, 2311), (77, 77)):
        part, norms = multiply_wide(dense[start:stop], vectors)
        assert torch.equal(part, product[start:stop])
        assert torch.equal(norms, squares[start:stop])
    tiles = NativeTiles(library, fused.expression, tuple(a.detach() for a in fused.arguments), n, dtype)
    made, norms = tiles.multiply_wide(vectors)
    assert torch.equal(made, product)
    assert torch.equal(norms, squares)
    some, norms = tiles.multiply_wide(vectors, slice(500, 777))
    assert torch.equal(some[500:777], product[500:777])
    assert torch.equal(norms[500:777], squares[500:777])
    assert not some[:500].any()
    assert not norms[777:].any()


@needs_library
def test_columns_of_another_length_or_precision_are_refused() -> None:
    library = native_library()
    assert library is not None
    fused = recognised(make("rbf", torch.float32), points(20, torch.float32))
    tiles = NativeTiles(library, fused.expression, tuple(a.detach() for a in fused.arguments), 20, torch.float32)
    for wrong in (random(19, 2), random(20, 2, dtype=torch.float32)):
        with pytest.raises(ValueError, match=r"20 numbers of torch\.float64"):
            tiles.multiply_wide(wrong)


@ways
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("held", ["dense", "recomputed", "shared", "recomputed by several"])
def test_every_kernel_matrix_has_the_product_of_its_entries(held, dtype, compiled) -> None:
    n, vectors = 600, random(600, 2)
    with settings.fused_kernels("compiled" if compiled else "tensors"):
        fused = recognised(make("sum_of_products", dtype), points(n, dtype))
        dense, share = fused.dense().detach(), ProcessShare.of(None, torch.device("cpu"))
        matrix: KernelMatrix = DenseKernelMatrix(dense)
        if held == "shared":
            matrix = ShardedKernelMatrix(fused.expression, fused.arguments, n, dtype, share)
        elif held == "recomputed":
            matrix = fused.recomputed()
        if held != "recomputed by several":
            product, squares = matrix.wide_product(vectors)
        else:  # which never meet: in a group of one, sums are the parts themselves
            parts = [ProcessShare(share.group, rank, 3) for rank in range(3)]
            wholes = [type(fused).of_arguments(fused.expression, fused.arguments, n, dtype, part) for part in parts]
            products, norms = zip(*(whole.recomputed().wide_product(vectors) for whole in wholes), strict=True)
            product, squares = torch.stack(products).sum(0), torch.stack(norms).sum(0)
    check(dense, vectors, product, squares)
