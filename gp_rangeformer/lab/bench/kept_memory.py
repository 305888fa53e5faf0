"""glibc's malloc as one that keeps what is freed, for every contender.

By default a block of 32 MiB and more (a K of n = 2,900 in float32) goes back to the system when it is freed, and the
next one is zeroed and mapped page by page again: on some virtual machines half of the seconds of GPyTorch's step. The
plug-in keeps its matrices itself (:mod:`gp_rangeformer.allocation.workspace`).
"""

from __future__ import annotations

import ctypes

from gp_rangeformer.lab.bench.resumed import PlanError

# mallopt(3): no block has a mapping of its own, and the heap's end is never given back.
_SETTINGS = {-4: 0, -1: -1}  # M_MMAP_MAX, M_TRIM_THRESHOLD


def keep_memory() -> None:
    """From here on, in this process, for good: malloc cannot be asked for what it was set to.

    :raises PlanError: the process has another C library.
    """
    try:
        library = ctypes.CDLL(None)
        known = hasattr(library, "gnu_get_libc_version")
    except (OSError, TypeError):  # Windows has no main program to open
        known = False
    if not known or not all(library.mallopt(name, value) for name, value in _SETTINGS.items()):
        raise PlanError("--keep-memory sets glibc's malloc (mallopt), which this process does not have: leave it out")
