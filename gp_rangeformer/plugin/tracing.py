"""Whether torch.jit traces a call, which neither compiled code nor decisions that numbers take can be part of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from gpytorch import settings as gpytorch_settings
from linear_operator import settings as host_settings


class _Left(threading.local):
    """Whether this thread is inside :func:`untraced`."""

    now = False


_left = _Left()


def tracing() -> bool:
    """Whether torch.jit.trace runs around this call, or a ``trace_mode`` says that it will: GPyTorch has its own beside
    linear_operator's, and its tutorial switches only that one on."""
    asked = gpytorch_settings.trace_mode.on() or host_settings.trace_mode.on()
    return not _left.now and (bool(asked) or torch.jit.is_tracing())


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """What is computed inside is a constant to torch.jit.trace, and answered as outside."""
    core = torch._C
    state, before = core._get_tracing_state(), _left.now
    core._set_tracing_state(None)  # type: ignore[attr-defined]
    _left.now = True
    try:
        yield
    finally:
        _left.now = before
        core._set_tracing_state(state)  # type: ignore[attr-defined]
