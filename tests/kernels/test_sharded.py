"""The parts of a shared kernel matrix, and what it communicates, in a group of one process; two: tests/backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from gp_rangeformer import settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.sharded import ProcessGroupError, ProcessShare, ShardedKernelMatrix
from gp_rangeformer.kernels.share import ALONE, Share
from gp_rangeformer.kernels.tiles import upper_blocks
from gp_rangeformer.solvers.kernel_matrix import KernelMatrix
from tests.backend.market import DIM, build, rangeformer_path
from tests.kernels.market import factors, make, points, recognised

CPU = torch.device("cpu")
SIZE = 600


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


@pytest.mark.usefixtures("group")
def test_the_parts_of_products_and_gradients_add_up() -> None:
    whole = recognised(make("sum_of_products"), points(SIZE))
    left, right, diagonal = factors(SIZE)
    parts = [
        FusedKernel.of_arguments(whole.expression, whole.arguments, SIZE, torch.float64, dealt(rank, 3))
        for rank in range(3)
    ]
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
        settings.adaptive_rank(False),
        settings.landmarks("uniform"),
        settings.logdet("lanczos"),
    ):
        problem.loss().backward()
    # Landmarks, and the sample whose norms tell the rounding of a product.
    read = 20 + 64 if storage == "dense" else 0
    vectors = reports[0].columns_multiplied + read
    gradient = SIZE * DIM
    assert reports[0].solver == "rangeformer"
    assert 0 <= sum(moved) - 8 * (SIZE * vectors + gradient) < 1024
