"""The parts of a shared kernel matrix, and what it communicates, in a group of one process; two: tests/plugin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from gp_rangeformer import settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.gpu.streamed import streamed
from gp_rangeformer.kernels.matrices.sharded import ProcessGroupError, ProcessShare, ShardedKernelMatrix, row_bounds
from gp_rangeformer.kernels.matrices.share import ALONE, Share
from gp_rangeformer.kernels.native import product as native_product
from gp_rangeformer.kernels.native.compiler import native_library
from gp_rangeformer.kernels.native.product import multiply, pack
from gp_rangeformer.kernels.tiles import upper_blocks
from gp_rangeformer.system.kernel_matrix import KernelMatrix
from tests.kernels.market import factors, make, points, recognised
from tests.kernels.rounding import of_sum
from tests.plugin.market import DIM, build, rangeformer_path

CPU = torch.device("cpu")
SIZE = 600
needs_library = pytest.mark.skipif(native_library() is None, reason="nothing here compiles C++")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_rows_of_one_process_are_the_matrix() -> None:
    fused = recognised(make("scaled_sum"), points(SIZE))
    dense = fused.dense().detach()
    share = ProcessShare.of(None, CPU)
    held = ShardedKernelMatrix(fused.expression, fused.arguments, SIZE, torch.float64, share)
    rhs, index = torch.randn(SIZE, 3, dtype=torch.float64), torch.tensor([7, SIZE - 1, 0])
    assert isinstance(held, KernelMatrix)
    assert isinstance(share, Share)
    assert torch.equal(held.matmul(rhs), dense @ rhs)
    assert torch.equal(held.columns(index), dense[:, index])
    assert torch.equal(held.diagonal(), dense.diagonal())
    assert torch.equal(held.to_dense(torch.float64), dense)
    assert held.is_finite()


@pytest.mark.usefixtures("group")
def test_not_a_number_in_any_row_is_noticed() -> None:
    x = points(SIZE)
    x[-1] = float("nan")
    fused = recognised(make("matern32"), x)
    held = ShardedKernelMatrix(fused.expression, fused.arguments, SIZE, torch.float64, ProcessShare.of(None, CPU))
    assert not held.is_finite()


def dealt(rank: int, count: int) -> ProcessShare:
    """One of ``count`` processes that never meet: in a group of one, sums are the parts themselves."""
    assert distributed.group.WORLD is not None
    return ProcessShare(distributed.group.WORLD, rank, count)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("count", [2, 3, 11])
def test_every_tile_is_dealt_to_one_process_and_none_gets_many_more(count: int) -> None:
    shares = [list(dealt(rank, count).blocks(upper_blocks(2000, 256))) for rank in range(count)]
    everything = [(block.rows.start, block.columns.start) for blocks in shares for block in blocks]
    assert sorted(everything) == sorted((b.rows.start, b.columns.start) for b in upper_blocks(2000, 256))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def in_parts(whole: FusedKernel, count: int) -> list[FusedKernel]:
    return [
        FusedKernel.of_arguments(whole.expression, whole.arguments, whole.n, whole.dtype, dealt(rank, count))
        for rank in range(count)
    ]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("compiled", [True, False])
def test_the_parts_of_products_and_gradients_add_up(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessShare, "require_same", lambda *arguments: None)  # nobody is there to compare with
    with settings.fused_kernels("compiled" if compiled else "tensors"):
        check_that_parts_add_up()


def check_that_parts_add_up() -> None:
    whole = recognised(make("sum_of_products"), points(SIZE))
    left, right, diagonal = factors(SIZE)
    parts = in_parts(whole, 3)
    assert whole.share is ALONE
    product = sum(part.recomputed().matmul(left) for part in parts)
    torch.testing.assert_close(product, whole.dense().detach() @ left)
    for pieces, expected in zip(
        zip(*(part.contract(left, right, diagonal) for part in parts), strict=True),
        whole.contract(left, right, diagonal),
        strict=True,
    ):
        assert not torch.allclose(pieces[0], expected)
        torch.testing.assert_close(sum(pieces), expected)


@needs_library
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 3, 11])
@pytest.mark.parametrize("columns", [5, 33])
def test_compiled_products_of_several_processes_have_the_bits_of_one(
    columns: int, count: int, dtype: torch.dtype
) -> None:
    whole = recognised(make("sum_of_products", dtype), points(SIZE, dtype))
    vectors = torch.randn(SIZE, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    total = torch.zeros_like(vectors)
    for part in in_parts(whole, count):
        total += part.recomputed().matmul(vectors)
    assert torch.equal(total, whole.recomputed().matmul(vectors))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("count", [1, 2, 3, 11])
@pytest.mark.parametrize("n", [1, 96, 97, 2000])
def test_every_row_is_dealt_to_one_process_and_none_gets_a_batch_more(n: int, count: int) -> None:
    shares = [dealt(rank, count).rows(n) for rank in range(count)]
    assert [row for rows in shares for row in range(rows.start, rows.stop)] == list(range(n))
    assert max(rows.stop - rows.start for rows in shares) <= n / count + 96


@needs_library
@pytest.mark.usefixtures("group")
def test_rows_that_are_held_go_through_the_library_with_the_block_of_a_training_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = 1500
    fused = recognised(make("matern32", torch.float32), points(n, torch.float32))
    held = ShardedKernelMatrix(fused.expression, fused.arguments, n, torch.float32, ProcessShare.of(None, CPU))
    vectors = torch.randn(n, 33, generator=torch.Generator().manual_seed(1))
    asked = []
    monkeypatch.setattr(native_product, "pack", lambda block: asked.append(block.shape) or pack(block))
    product = held.matmul(vectors)
    assert asked == [(n, 33)]
    assert torch.equal(product, multiply(fused.dense().detach(), vectors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_some_rows_are_those_rows_of_the_product(dtype: torch.dtype) -> None:
    n, own = 2100, slice(517, 2057)
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=dtype)
    vectors = torch.randn(n, 33, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found, expected = multiply(matrix[own], vectors), multiply(matrix, vectors)[own]
    # The library may be PyTorch's, in any order: each may err by this.
    bound = 2 * of_sum(n, dtype) * (matrix[own].double().abs() @ vectors.double().abs())
    assert bool(((found - expected).double().abs() <= bound).all())


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["matern32", "rq"])
def test_the_parts_of_streamed_products_and_gradients_add_up(name: str) -> None:
    fused = recognised(make(name, torch.float32).cuda(), points(SIZE, torch.float32).cuda())
    stream = streamed(fused.expression, fused.arguments, torch.float32)
    assert stream is not None
    left, right, diagonal = (factor.cuda() for factor in factors(SIZE, dtype=torch.float32))
    bounds = row_bounds(SIZE, 96, 4)
    rows = [slice(start, stop) for start, stop in itertools.pairwise([*bounds, SIZE])]  # the last one is empty
    product = sum(stream.matmul(left, own) for own in rows)
    torch.testing.assert_close(product, stream.matmul(left), rtol=1e-5, atol=1e-4)
    parts = [stream.contract(left, right, diagonal, own) for own in rows]
    for pieces, expected in zip(zip(*parts, strict=True), stream.contract(left, right, diagonal), strict=True):
        assert not torch.allclose(pieces[0], expected)
        torch.testing.assert_close(sum(pieces), expected, rtol=1e-5, atol=1e-4)


def test_without_a_process_group_the_error_says_how_to_make_one() -> None:
    with pytest.raises(ProcessGroupError, match=r"torch.distributed.init_process_group first \(torchrun"):
        ProcessShare.of(None, CPU)


@pytest.mark.usefixtures("group")
def test_a_group_that_was_destroyed_is_refused() -> None:
    stale = distributed.new_group([0])
    assert isinstance(stale, distributed.ProcessGroup)
    ProcessShare.of(stale, CPU)
    distributed.destroy_process_group(stale)
    with pytest.raises(ProcessGroupError, match="no longer valid"):
        ProcessShare.of(stale, CPU)


@pytest.mark.usefixtures("group")
def test_a_group_for_other_devices_is_refused() -> None:
    with pytest.raises(ProcessGroupError, match=r"the tensors are on meta, which the process group does not serve"):
        ProcessShare.of(None, torch.device("meta"))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("storage", ["dense", "tiles"])
def test_a_training_step_communicates_one_vector_for_every_column_that_it_multiplies(
    monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    """And the gradient of n x 3 coordinates once, columns of K, and what fits into a kilobyte."""
    moved = []

    def counting(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *others: Any, **options: Any) -> Any:
            tensors = first if isinstance(first, list) else [first]
            moved.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
            return collective(first, *others, **options)

        return call

    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(distributed, name, counting(getattr(distributed, name)))
    problem = build("ard", n=SIZE)
    with (
        rangeformer_path(rank=20) as reports,
        settings.kernel_storage(storage),
        settings.process_group(True),
        settings.solver(adaptive_rank=False),
        settings.solver(landmarks="uniform"),
        settings.solver(logdet="lanczos"),
    ):
        problem.loss().backward()
    read = 20 if storage == "dense" else 0  # landmarks
    vectors = reports[0].columns_multiplied + read
    gradient = SIZE * DIM
    assert reports[0].solver == "rangeformer"
    assert 0 <= sum(moved) - 8 * (SIZE * vectors + gradient) < 1024
