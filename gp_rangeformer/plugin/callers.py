"""Who asks: what a result is for is known by the call stack alone, where the host's methods say nothing of it."""

from __future__ import annotations

import inspect
import sys
import threading
from types import FrameType

# In which a caller is looked for: memoisation, decorators, lazy evaluation and type checks add some to every call.
_FRAMES = 48


def called_by(*functions: str, package: str = "gpytorch.models") -> bool:
    """Whether a function of one of these names, of a module in ``package``, is on the call stack."""
    frame = inspect.currentframe()
    for _ in range(_FRAMES):
        if frame is None:
            return False
        if frame.f_code.co_name in functions and str(frame.f_globals.get("__name__")).startswith(package):
            return True
        frame = frame.f_back
    return False


# In which a thread waits for another one's result.
_WAITING = ("threading", "concurrent", "queue", "asyncio", "selectors", "multiprocessing")


def inside_line_search() -> bool:
    """Whether a line search is on the call stack: its objective is evaluated from inside its step, nobody else's is.

    Known by its module: scipy.optimize, or any name with "lbfgs" in it (torch's, BoTorch's batched one, others'). In
    threads other than the main one also where a line search waits for a thread: its objective may be evaluated in this
    one. A line search that does not wait evaluates its own.
    """
    if _in_line_search(inspect.currentframe()):
        return True
    if threading.current_thread() is threading.main_thread():
        return False
    frames = sys._current_frames().values()
    return any(_module(frame).split(".")[0] in _WAITING and _in_line_search(frame) for frame in frames)


def _in_line_search(frame: FrameType | None) -> bool:
    while frame is not None:
        module = _module(frame)
        if module.startswith("scipy.optimize") or "lbfgs" in module.lower():
            return True
        frame = frame.f_back
    return False


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
