"""Memory of kernel matrices is used again, and never while somebody still looks at it."""

from __future__ import annotations

import gc
import mmap
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from gp_rangeformer.allocation import workspace
from gp_rangeformer.allocation.free_memory import Demand
from gp_rangeformer.allocation.workspace import empty_matrix, keep_at_most, kept_bytes, release, shortage

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


# Page faults of a round of eight blocks of 4 MiB at a time, more than malloc keeps by itself unless something else has
# come to lie behind them. The fewest of several rounds: the first one grows the heap, and a kernel that moves pages
# between memories of one machine counts what it moves.
FAULTS = """
import resource, torch
from gp_rangeformer.allocation.workspace import empty_matrix

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        [torch.ones(1024, 1024) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

empty_matrix(1000, 1000, torch.float32, torch.device("cpu"))
print(min(faults() for _ in range(5)))
"""
PAGES = 3 * 8 * 4 * 1024**2 // mmap.PAGESIZE


def fewest_faults(**malloc: str) -> int:
    """In a process of its own, its malloc set as ``malloc`` says: any large block that was freed before counts."""
    others = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environment |= {"OMP_NUM_THREADS": "1"} | malloc
    command = [sys.executable, "-c", FAULTS]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc keeps what it likes")
def test_thin_temporaries_fault_no_pages_once_a_matrix_was_asked_for() -> None:
    # Told to keep nothing, malloc must be seen to fault every page: not so with huge pages, or where torch has another.
    if fewest_faults(MALLOC_MMAP_THRESHOLD_=str(2**17)) < 0.5 * PAGES:
        pytest.skip("nothing is to be seen of malloc's memory in page faults here")
    assert fewest_faults() < 0.05 * PAGES


@pytest.mark.parametrize(("n", "dtype"), [(N + 100, torch.float32), (N - 100, torch.float32), (N, torch.float64)])
def test_another_size_or_precision_gets_other_memory(n, dtype) -> None:
    first = matrix()
    del first
    second = matrix(n, dtype)
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)
    assert second.dtype == dtype
    assert second.shape == (n, n)


@pytest.mark.parametrize("n", [N + 10, N - 50])
def test_a_matrix_of_nearly_the_same_size_takes_the_memory(n) -> None:
    first = matrix()
    place = first.data_ptr()
    del first
    second = matrix(n)
    assert second.data_ptr() == place
    assert second.shape == (n, n)
    second.fill_(1)
    assert kept_bytes() == 0
    del second
    assert kept_bytes() == pytest.approx(4 * max(N, n) ** 2, rel=1e-3)


def test_sizes_that_grow_leave_little_behind() -> None:
    """Models of a rolling window, or of data that arrive: no former size comes again."""
    for n in range(N, 3 * N, 20):
        several = [matrix(n) for _ in range(2)]
        del several
    assert n > 2900
    assert kept_bytes() < 3 * 2 * 4 * n**2
    # The next sizes of all have room already.
    places = {tensor.data_ptr() for tensor in [matrix(n), matrix(n)]}
    assert {tensor.data_ptr() for tensor in [matrix(n + 5), matrix(n + 5)]} == places


def test_two_sizes_in_turn_keep_their_memory() -> None:
    places = []
    for _ in range(3):
        for n in (N, 2 * N):
            steps = []
            for _ in range(20):
                tensor = matrix(n)
                steps.append(tensor.data_ptr())
                del tensor
            assert len(set(steps)) == 1
            places.append(steps[0])
    assert len(set(places)) == 2


def test_what_many_matrices_had_no_use_for_is_returned() -> None:
    del_me = [matrix(2 * N)]
    del_me.clear()
    for _ in range(100):
        matrix()
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)


RELEASED = """
import torch
from gp_rangeformer.allocation.workspace import empty_matrix, release

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

empty_matrix(1000, 1000, torch.float32, torch.device("cpu"))
before = resident()
# A small one in between keeps the heap from shrinking by itself.
blocks = [(torch.ones(1024, 1024), torch.ones(1000)) for _ in range(50)]
small = [block[1] for block in blocks]
matrices = [empty_matrix(1000, 1000, torch.float32, torch.device("cpu")).fill_(1) for _ in range(20)]
del blocks, matrices
kept = resident() - before
release()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc returns what it likes")
def test_release_returns_what_malloc_keeps() -> None:
    run = subprocess.run([sys.executable, "-c", RELEASED], capture_output=True, text=True, check=True, timeout=120)
    kept, left = map(float, run.stdout.split())
    assert kept > 200  # else there is nothing to see
    assert left < 20


def test_no_more_is_kept_than_allowed() -> None:
    keep_at_most(int(1.5 * MATRIX))
    several = [matrix() for _ in range(3)]
    del several
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)
    keep_at_most(0)
    assert kept_bytes() == 0


def test_one_matrix_beyond_the_limit_is_kept_where_memory_is_plentiful(monkeypatch) -> None:
    monkeypatch.setattr(workspace, "free_bytes", lambda device: 4 * MATRIX)
    keep_at_most(MATRIX // 2)
    several = [matrix() for _ in range(3)]
    place = several[-1].data_ptr()
    while several:
        several.pop(0)
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)
    assert matrix().data_ptr() == place


def test_small_ones_keep_their_limit_beside_it(monkeypatch) -> None:
    monkeypatch.setattr(workspace, "free_bytes", lambda device: 4 * MATRIX)
    keep_at_most(MATRIX // 2)
    several = [matrix(), *(matrix(600) for _ in range(3))]
    several.clear()
    assert kept_bytes() == pytest.approx(MATRIX + 4 * 600**2, rel=1e-2)


@pytest.mark.parametrize(("free", "limit"), [(2 * MATRIX, MATRIX // 2), (9 * MATRIX, 0)])
def test_none_beyond_the_limit_is_kept_where_memory_is_short_or_nothing_may_be(monkeypatch, free, limit) -> None:
    monkeypatch.setattr(workspace, "free_bytes", lambda device: free)
    keep_at_most(limit)
    del_me = [matrix()]
    del_me.clear()
    assert kept_bytes() == 0


def test_a_matrix_of_another_size_does_not_stand_beside_the_kept_one(monkeypatch) -> None:
    monkeypatch.setattr(workspace, "free_bytes", lambda device: 9 * MATRIX)
    keep_at_most(MATRIX // 2)
    del_me = [matrix()]
    del_me.clear()
    other = matrix(N + 100)
    assert kept_bytes() == 0
    del other


def test_what_is_kept_is_returned_before_memory_is_said_to_be_lacking(monkeypatch) -> None:
    del_me = [matrix()]
    del_me.clear()
    asked = []

    def free(n, device) -> int:
        asked.append(kept_bytes())
        return 10 * MATRIX - kept_bytes()

    monkeypatch.setattr(workspace, "free_bytes_for", free)
    fits_without = Demand(9.4 * MATRIX / (4 * N * N), 0, 4)
    assert shortage(fits_without, N, CPU) is None
    assert asked[-1] == 0 < asked[0]
    assert shortage(Demand(20.0, 0, 4), N, CPU) is not None


def test_a_matrix_may_be_dropped_in_another_thread() -> None:
    tensors = [matrix()]
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)


def test_giving_back_waits_for_no_thread() -> None:
    """Collections run under any lock, and a thread that waits here may hold what the other one waits for."""
    tensors, place = [matrix()], threading.Event()
    thread = threading.Thread(target=lambda: (tensors.clear(), place.set()))
    with workspace._lock:
        thread.start()
        assert place.wait(10)
    thread.join()
    assert kept_bytes() == pytest.approx(MATRIX, rel=1e-3)
    again = matrix()
    assert again.shape == (N, N)
    assert kept_bytes() == 0


def test_rows_start_at_cache_lines() -> None:
    assert matrix().data_ptr() % 64 == 0
    assert matrix(n=1024).stride() == (1024, 1)
