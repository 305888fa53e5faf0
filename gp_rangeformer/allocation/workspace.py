"""Where large matrices are put: on a CPU, in memory that an earlier one has left.

The first write to fresh memory costs a page fault for every page. At n = 4000 that is almost half of what a kernel
matrix takes (float32, one thread: 46 ms in fresh memory, 25 ms in memory already in use), and a training step makes
the same matrix again and again. So the memory of the last ones is kept, up to a limit, and comes from NumPy, which asks
Linux for huge pages. A matrix of nearly the same size takes it too, as n grows from model to model; what a few dozen
matrices in a row had no use for goes back to the system. Beyond the limit one matrix is kept where it is small beside
what else is free: at n = 16,000 a step takes 0.6 s with it and 0.7 to 1.0 s without. CUDA's allocator keeps its memory
by itself.

Thin temporaries are left to malloc, which glibc's is told once to keep: a tenth of a step at n = 4000 and 8000.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.allocation.free_memory import Demand, free_bytes, free_bytes_for

_SMALLEST = 2**20  # bytes; malloc keeps what is smaller
_ALIGNMENT = 64  # bytes of a cache line
# glibc's malloc returns memory at the end of its heap once it is twice the largest mapped block that was freed so far;
# blocks up to 32 MiB count (mallopt(3), M_MMAP_THRESHOLD). A step frees dozens of blocks of a few MiB.
_LARGEST_COUNTED = 2**25 - 2**13
_SHARE = 3  # one matrix beyond the limit is kept if three of its size are free
_NEAR = 1.2  # times the size asked for: no larger memory serves
# Matrices in a row that may have no use for a memory: of about sixteen training steps; of four where none fits, which
# says that sizes are changing.
_SOON, _SOON_OF_OTHERS = 64, 16
_lock = threading.RLock()  # re-entrant: a matrix may be collected while this thread holds it
_kept: list[_Block] = []  # least recently given back first
_pending: deque[_Block] = deque()  # given back while another thread held the lock
_taken = 0  # matrices so far
_limit = 512 * 2**20


@dataclass(eq=False)
class _Block:
    """Memory, how much of it has been written to, and how many matrices there had been when it was given back."""

    memory: np.ndarray
    used: int
    returned: int = 0


def empty_matrix(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "rows columns"]:
    """An uninitialised matrix, float32 or float64. Its memory is given back when no tensor refers to it any more."""
    size = rows * columns * dtype.itemsize
    if device.type != "cpu" or size < _SMALLEST:
        return torch.empty(rows, columns, dtype=dtype, device=device)
    _let_malloc_keep()
    block = _take(size + _ALIGNMENT)
    start = -block.memory.ctypes.data % _ALIGNMENT
    values = block.memory[start : start + size].view(str(dtype).removeprefix("torch."))
    # torch holds on to this very array until the last tensor that shares its memory is gone.
    lease = values.reshape(rows, columns)
    weakref.finalize(lease, _give_back, block).atexit = False
    return torch.from_numpy(lease)


def keep_at_most(limit: int) -> None:
    """Keep at most ``limit`` bytes of unused memory from now on, and one matrix beside them if there is plenty of free
    memory; nothing at all if ``limit`` is zero."""
    global _limit
    with _lock:
        _limit = limit
        _trim()


def release() -> None:
    """Return all unused memory to the system, malloc's too."""
    with _lock:
        _pending.clear()
        _kept.clear()
    trim_heap()


def trim_heap() -> None:
    """Have malloc return what it keeps: glibc's, elsewhere nothing happens. Freed matrices below 32 MiB stay in its
    heap otherwise."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def kept_bytes() -> int:
    """Bytes of unused memory that are kept."""
    with _lock:
        return sum(block.used for block in (*_kept, *_pending))


def shortage(demand: Demand, n: int, device: torch.device) -> str | None:
    """As :meth:`~gp_rangeformer.allocation.free_memory.Demand.shortage` on ``device``; what is kept here is returned
    before anything is said to be lacking. None also for a small n, which is not checked."""
    lacking = demand.shortage(n, free_bytes_for(n, device))
    if lacking is not None and device.type == "cpu" and kept_bytes():
        release()
        lacking = demand.shortage(n, free_bytes_for(n, device))
    return lacking


@functools.cache
def _let_malloc_keep() -> None:
    """Keep up to 64 MiB of freed memory in the heap: a block, never written to, is mapped and freed. Elsewhere than
    with glibc nothing changes."""
    torch.empty(_LARGEST_COUNTED, dtype=torch.uint8, device="cpu")


def _take(size: int) -> _Block:
    global _taken
    with _lock:
        _taken += 1
        if _pending:
            _trim()
        near = [block for block in _kept if size <= block.memory.nbytes <= _NEAR * size]
        if near:
            # Of the smallest the one that was given back last, whose lines may still be in a cache.
            block = min(reversed(near), key=lambda found: found.memory.nbytes)
            _kept[:] = [other for other in _kept if other is not block]
            block.used = max(block.used, size)
            return block
        _drop(_SOON_OF_OTHERS)
        if size > _limit:
            # Matrices of another size: the last one's memory would stand beside this one's.
            _kept[:] = [block for block in _kept if block.used <= _limit]
    return _Block(np.empty(_capacity(size), dtype=np.uint8), size)


def _capacity(size: int) -> int:
    """``size`` or up to an eighth more, so that a slightly larger n finds room next time: addresses, not memory, for
    pages that nobody writes to are not there."""
    step = 1 << (size.bit_length() - 4)
    return -(-size // step) * step


def _give_back(block: _Block) -> None:
    """Runs wherever the last tensor happens to go, under whatever locks: it waits for none."""
    block.returned = _taken
    _pending.append(block)
    if _lock.acquire(blocking=False):
        try:
            _trim()
        finally:
            _lock.release()


def _trim() -> None:
    while _pending:
        _kept.append(_pending.popleft())
    _drop(_SOON)
    spared = _spared()
    while sum(block.used for block in _kept if block is not spared) > _limit:
        _kept.pop(next(index for index, block in enumerate(_kept) if block is not spared))


def _drop(matrices: int) -> None:
    """What the last ``matrices`` had no use for."""
    _kept[:] = [block for block in _kept if _taken - block.returned <= matrices]


def _spared() -> _Block | None:
    """The one matrix that does not count: the last one beyond the limit, if there is plenty of memory."""
    if _limit == 0:
        return None
    for block in reversed(_kept):
        if block.used > _limit:
            free = free_bytes(torch.device("cpu"))
            return block if free is None or free >= _SHARE * block.used else None
    return None
