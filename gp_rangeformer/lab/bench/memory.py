"""The memory of one contender's step, apart from everybody else's."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator, Sequence

from gp_rangeformer import clear_memory
from gp_rangeformer.lab.bench.contenders import Problem
from gp_rangeformer.lab.bench.entrants import Entrant
from gp_rangeformer.lab.compare.audit import Parameters
from gp_rangeformer.lab.compare.instruments import PeakMemory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_AT_ONCE = 64 * 2**10
_LARGEST = 32 * 2**20  # where glibc's own adjustment of the threshold ends


def measure_memory(entrant: Entrant, problem: Problem, states: Sequence[Parameters]) -> float | None:
    """Peak in MiB above what was held before, None where it cannot be told.

    One contender is alive, and the plug-in remembers nothing. Its model and the data are there before; its steps are
    as many as fill its memory.
    """
    gc.collect()
    contender = entrant.build(problem)
    memory = PeakMemory(problem.data.train_x.device)
    clear_memory()
    with freed_at_once():
        memory.start()
        for state in states[: entrant.steps_to_fill]:
            contender.evaluate(state)
        peak = memory.peak()
    clear_memory()
    return peak


@contextlib.contextmanager
def freed_at_once() -> Iterator[None]:
    """Freed matrices go back to the system at any n.

    glibc keeps those below 32 MiB (n < 2900 in float32) in its heap, where they count as resident: up to twice the
    memory in use at n = 2000, and another number in every run. Its adjustment cannot be switched on again, so what it
    ends at is left behind.
    """
    _set_thresholds(_AT_ONCE, _AT_ONCE)
    try:
        yield
    finally:
        _set_thresholds(_LARGEST, 2 * _LARGEST)


def _set_thresholds(own_mapping: int, trim: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, own_mapping)
            library.mallopt(_M_TRIM_THRESHOLD, trim)
