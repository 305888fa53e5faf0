"""How many threads a call takes: PyTorch's, or half of them while other programs want the same cores.

OpenMP's threads wait for each other at the end of every parallel stretch, of which a step has a hundred. Where one has
lost its core to another program, all wait until it is given back, milliseconds each time. On two cores beside one busy
process a step at n = 2000 took 0.6 s with two threads and 0.07 with one; alone 0.05 and 0.07.

Other work is noticed by how often this thread loses its core, or gives it up while it waits: Linux counts both. Fewer
threads add numbers up in another order, so ``settings.deterministic`` keeps all, and so do processes of a group, which
must agree.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import torch

from gp_rangeformer import settings

try:
    import resource
except ImportError:
    resource = None

# Who to count for, None where a thread's own switches are not counted (not Linux): there nothing is noticed.
_THIS_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)

# Times a thread left its core, in a second of its own time: 0 to 90 alone, 220 to 430 beside one or two busy processes
# (n = 2000 and 8000, two threads, two cores).
_MANY = 150
# Where waiting threads sleep, they give their cores up whatever else runs.
_SLEEPING = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
_WINDOW = 0.03  # s of a thread's own time that are judged together: a call may last a millisecond
# s of its own time that a thread goes on with fewer before it tries all again: twice as long every time in vain.
_SHORTEST, _LONGEST = 2.0, 32.0


OTHER_WORK = "other work wants the same cores: half of the threads"


class _Watch(threading.local):
    """What the calling thread has seen."""

    inside = False
    seconds = 0.0  # of the window
    left_core = 0  # in the window
    suspected = False  # by the window before: the first call of a process reads files
    fewer_for = 0.0  # s that are left with fewer threads
    patience = _SHORTEST


_watch = _Watch()


@contextlib.contextmanager
def free_cores() -> Iterator[None]:
    """All threads of PyTorch, or half of them where other work was met: for one call, and what it calls. 4 us.

    A decorator too.
    """
    threads = torch.get_num_threads()
    if threads == 1 or _watch.inside or not _watched():
        yield
        return
    fewer = _watch.fewer_for > 0 and _may_choose()
    seconds, left_core = _usage()
    try:
        _watch.inside = True
        if fewer:
            torch.set_num_threads(threads // 2)
        yield
    finally:
        _watch.inside = False
        if fewer and torch.get_num_threads() == threads // 2:  # else somebody has chosen another number
            torch.set_num_threads(threads)
        now, left_core_now = _usage()
        _judge(fewer, now - seconds, left_core_now - left_core)


def beside_other_work() -> bool:
    """Whether calls of this thread take half of the threads now."""
    return _watch.fewer_for > 0 and torch.get_num_threads() > 1 and _watched() and _may_choose()


def forget() -> None:
    """As if nothing had been met."""
    _watch.__dict__.clear()


def _judge(fewer: bool, seconds: float, left_core: int) -> None:
    if fewer:
        # That this thread keeps its core now says nothing of a second one.
        _watch.fewer_for = max(0.0, _watch.fewer_for - seconds)
        return
    _watch.seconds += seconds
    _watch.left_core += left_core
    if _watch.seconds < _WINDOW:
        return
    met = _watch.left_core > _MANY * _watch.seconds
    _watch.seconds, _watch.left_core = 0.0, 0
    if met and _watch.suspected:
        # Stays suspected: one window is enough when all threads are tried again.
        _watch.fewer_for, _watch.patience = _watch.patience, min(2 * _watch.patience, _LONGEST)
    elif not met:
        _watch.patience = _SHORTEST
    _watch.suspected = met


def _watched() -> bool:
    """PyTorch's number is also that which new threads start with: the main thread alone changes it."""
    return _THIS_THREAD is not None and threading.current_thread() is threading.main_thread()


def _may_choose() -> bool:
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return alone and settings.deterministic.off()


def _usage() -> tuple[float, int]:
    """Seconds of this thread's own time, and how often it has left its core."""
    assert resource is not None
    assert _THIS_THREAD is not None
    used = resource.getrusage(_THIS_THREAD)
    return time.thread_time(), used.ru_nivcsw + (0 if _SLEEPING else used.ru_nvcsw)
