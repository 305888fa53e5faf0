"""Modes of PyTorch that a call may be made in: function transforms, forward-mode derivatives, autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

_AUTOCAST_DEVICES = ("cpu", "cuda")


def transforming() -> bool:
    """Whether torch.func (grad, jacrev, hessian, vmap, jvp) or a forward-mode derivative runs around this call.

    Their tensors are wrappers of others: what reads numbers from them, or keeps them, sees the wrong ones.
    """
    functorch = torch._C._functorch
    return functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def batched(gradient: Tensor) -> bool:
    """Whether an incoming gradient stands for many at once (``is_grads_batched``, ``vectorize=True``)."""
    # Two implementations: torch.func's, and the older one that is_grads_batched still uses.
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Autocast off inside: certificates need the precision that the tensors have."""
    with contextlib.ExitStack() as stack:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
