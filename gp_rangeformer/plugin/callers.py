"""Who asks: what a result is for is known by the call stack alone, where the host's methods say nothing of it."""

from __future__ import annotations

import inspect

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
