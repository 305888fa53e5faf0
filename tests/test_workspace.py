"""Memory of kernel matrices is used again, and never while somebody still looks at it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import torch

from gp_rangeformer.workspace import empty_matrix, keep_at_most, kept_bytes, release

CPU = torch.device("cpu")
N = 1000
MATRIX = 4 * N * N


def matrix(n: int = N, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return empty_matrix(n, n, dtype, CPU)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    gc.collect()
    release()
    yield
    keep_at_most(512 * 2**20)
    release()


def test_memory_is_used_again_once_the_tensor_is_gone() -> None:
    first = matrix()
    place = first.data_ptr()
    del first
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)
    again = matrix()
    assert again.data_ptr() == place
    assert kept_bytes() == 0


@pytest.mark.parametrize("look", ["view", "detached", "numpy", "saved", "storage"])
def test_memory_is_not_used_again_while_somebody_looks_at_it(look) -> None:
    first = matrix()
    first.fill_(7)
    if look == "saved":
        factor = torch.ones(N, N, requires_grad=True)
        seen = factor * first  # saved for the backward pass
    else:
        seen = {
            "view": lambda: first[3:, 5],
            "detached": lambda: first.detach().mT,
            "numpy": lambda: first.numpy()[::2],
            "storage": lambda: first.untyped_storage(),
        }[look]()
    del first
    gc.collect()
    assert kept_bytes() == 0
    matrix().fill_(-1)
    if look == "saved":
        (gradient,) = torch.autograd.grad(seen.sum(), factor)
        assert bool((gradient == 7).all())
    elif look != "storage":
        assert bool((torch.as_tensor(seen) == 7).all())


def test_two_matrices_at_a_time_have_memory_of_their_own() -> None:
    first, second = matrix(), matrix()
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())


def test_another_size_or_precision_gets_other_memory() -> None:
    first = matrix()
    del first
    second, third = matrix(N + 1), matrix(N, torch.float64)
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)
    assert second.shape == (N + 1, N + 1)
    assert third.dtype == torch.float64
    assert third.shape == (N, N)


def test_no_more_is_kept_than_allowed() -> None:
    keep_at_most(int(1.5 * MATRIX))
    several = [matrix() for _ in range(3)]
    del several
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)
    keep_at_most(0)
    assert kept_bytes() == 0


def test_a_matrix_may_be_dropped_in_another_thread() -> None:
    tensors = [matrix()]
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)


def test_rows_start_at_cache_lines() -> None:
    assert matrix().data_ptr() % 64 == 0
    assert matrix(n=1024).stride() == (1024, 1)
