"""Where large matrices are put: on a CPU, in memory that an earlier one has left.

The first write to fresh memory costs a page fault for every page. At n = 4000 that is almost half of what a kernel
matrix takes (float32, one thread: 46 ms in fresh memory, 25 ms in memory already in use), and a training step makes
the same matrix again and again. So the memory of the last ones is kept, up to a limit, and comes from NumPy, which asks
Linux for huge pages. CUDA's allocator keeps its memory by itself.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_SMALLEST = 2**20  # bytes; malloc keeps what is smaller
_ALIGNMENT = 64  # bytes of a cache line
_lock = threading.RLock()  # re-entrant: a matrix may be collected while this thread holds it
_kept: list[np.ndarray] = []  # least recently given back first
_limit = 512 * 2**20


def empty_matrix(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "rows columns"]:
    """An uninitialised matrix, float32 or float64. Its memory is given back when no tensor refers to it any more."""
    size = rows * columns * dtype.itemsize
    if device.type != "cpu" or size < _SMALLEST:
        return torch.empty(rows, columns, dtype=dtype, device=device)
    memory = _take(size)
    start = -memory.ctypes.data % _ALIGNMENT
    values = memory[start : start + size].view(str(dtype).removeprefix("torch."))
    # torch holds on to this very array until the last tensor that shares its memory is gone.
    lease = values.reshape(rows, columns)
    weakref.finalize(lease, _give_back, memory).atexit = False
    return torch.from_numpy(lease)


def keep_at_most(limit: int) -> None:
    """Keep at most ``limit`` bytes of unused memory from now on."""
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


def _take(size: int) -> np.ndarray:
    wanted = size + _ALIGNMENT
    with _lock:
        for index, memory in enumerate(_kept):
            if memory.nbytes == wanted:
                return _kept.pop(index)
    return np.empty(wanted, dtype=np.uint8)


def _give_back(memory: np.ndarray) -> None:
    with _lock:
        _kept.append(memory)
        _trim()


def _trim() -> None:
    while _kept and sum(memory.nbytes for memory in _kept) > _limit:
        _kept.pop(0)
