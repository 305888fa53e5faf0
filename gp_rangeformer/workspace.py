"""Where large matrices are put: on a CPU, in memory that an earlier one has left.

The first write to fresh memory costs a page fault for every page. At n = 4000 that is almost half of what a kernel
matrix takes (float32, one thread: 46 ms in fresh memory, 25 ms in memory already in use), and a training step makes
the same matrix again and again. So the memory of the last ones is kept, up to a limit, and comes from NumPy, which asks
Linux for huge pages. Beyond the limit one matrix is kept where it is small beside what else is free: at n = 16,000 a
step takes 0.6 s with it and 0.7 to 1.0 s without. CUDA's allocator keeps its memory by itself.

Thin temporaries are left to malloc, which glibc's is told once to keep: a tenth of a step at n = 4000 and 8000.
"""

from __future__ import annotations

import functools
import threading
import weakref

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.free_memory import Demand, free_bytes, free_bytes_for

_SMALLEST = 2**20  # bytes; malloc keeps what is smaller
_ALIGNMENT = 64  # bytes of a cache line
# glibc's malloc returns memory at the end of its heap once it is twice the largest mapped block that was freed so far;
# blocks up to 32 MiB count (mallopt(3), M_MMAP_THRESHOLD). A step frees dozens of blocks of a few MiB.
_LARGEST_COUNTED = 2**25 - 2**13
_SHARE = 3  # one matrix beyond the limit is kept if three of its size are free
_lock = threading.RLock()  # re-entrant: a matrix may be collected while this thread holds it
_kept: list[np.ndarray] = []  # least recently given back first
_limit = 512 * 2**20


def empty_matrix(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "rows columns"]:
    """An uninitialised matrix, float32 or float64. Its memory is given back when no tensor refers to it any more."""
    size = rows * columns * dtype.itemsize
    if device.type != "cpu" or size < _SMALLEST:
        return torch.empty(rows, columns, dtype=dtype, device=device)
    _let_malloc_keep()
    memory = _take(size)
    start = -memory.ctypes.data % _ALIGNMENT
    values = memory[start : start + size].view(str(dtype).removeprefix("torch."))
    # torch holds on to this very array until the last tensor that shares its memory is gone.
    lease = values.reshape(rows, columns)
    weakref.finalize(lease, _give_back, memory).atexit = False
    return torch.from_numpy(lease)


def keep_at_most(limit: int) -> None:
    """Keep at most ``limit`` bytes of unused memory from now on, and one matrix beside them if there is plenty of free
    memory; nothing at all if ``limit`` is zero."""
    global _limit
    with _lock:
        _limit = limit
        _trim()


def release() -> None:
    """Return all unused memory to the system."""
    with _lock:
        _kept.clear()


def kept_bytes() -> int:
    """Bytes of unused memory that are kept."""
    with _lock:
        return sum(memory.nbytes for memory in _kept)


def shortage(demand: Demand, n: int, device: torch.device) -> str | None:
    """As :meth:`~gp_rangeformer.free_memory.Demand.shortage` on ``device``; what is kept here is returned before
    anything is said to be lacking. None also for a small n, which is not checked."""
    lacking = demand.shortage(n, free_bytes_for(n, device))
    if lacking is not None and device.type == "cpu" and kept_bytes():
        release()
        lacking = demand.shortage(n, free_bytes_for(n, device))
    return lacking


@functools.cache
def _let_malloc_keep() -> None:
    """Keep up to 64 MiB of freed memory in the heap: a block, never written to, is mapped and freed. Elsewhere than
    with glibc nothing changes."""
    torch.empty(_LARGEST_COUNTED, dtype=torch.uint8)


def _take(size: int) -> np.ndarray:
    wanted = size + _ALIGNMENT
    with _lock:
        for index, memory in enumerate(_kept):
            if memory.nbytes == wanted:
                return _kept.pop(index)
        if wanted > _limit:
            # Matrices of another size: the last one's memory would stand beside this one's.
            _kept[:] = [memory for memory in _kept if memory.nbytes <= _limit]
    return np.empty(wanted, dtype=np.uint8)


def _give_back(memory: np.ndarray) -> None:
    with _lock:
        _kept.append(memory)
        _trim()


def _trim() -> None:
    spared = _spared()
    while sum(memory.nbytes for memory in _kept if memory is not spared) > _limit:
        _kept.pop(next(index for index, memory in enumerate(_kept) if memory is not spared))


def _spared() -> np.ndarray | None:
    """The one matrix that does not count: the last one beyond the limit, if there is plenty of memory."""
    if _limit == 0:
        return None
    for memory in reversed(_kept):
        if memory.nbytes > _limit:
            free = free_bytes(torch.device("cpu"))
            return memory if free is None or free >= _SHARE * memory.nbytes else None
    return None
