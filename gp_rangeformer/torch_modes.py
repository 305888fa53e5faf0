"""Modes of PyTorch that a call may be made in: function transforms, forward-mode derivatives, autocast, products in
less than float32, another default device."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gp_rangeformer import settings
from gp_rangeformer.float32_products import FLOAT32_PRODUCTS

_AUTOCAST_DEVICES = ("cpu", "cuda")


def transforming() -> bool:
    """Whether torch.func (grad, jacrev, hessian, vmap, jvp) or a forward-mode derivative runs around this call.

    Their tensors are wrappers of others: what reads numbers from them, or keeps them, sees the wrong ones.
    """
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    # Not "is not None": torch.compile takes that for true, whatever is on the stack (torch 2.13).
    interpreting = isinstance(functorch.peek_interpreter_stack(), functorch.CInterpreter)
    return interpreting or forward_ad._current_level >= 0


def saving_elsewhere() -> bool:
    """Whether what autograd saves is handed to somebody else: a checkpoint that is not reentrant, or save_on_cpu."""
    autograd = torch._C._autograd  # type: ignore[attr-defined]
    if hasattr(autograd, "_top_saved_tensors_default_hooks"):
        return autograd._top_saved_tensors_default_hooks(False) is not None
    if not autograd._saved_tensors_hooks_is_enabled():  # they can be disabled only while there are none
        return False
    try:  # PyTorch 2.4 to 2.7 tell only by refusing
        autograd._saved_tensors_hooks_disable("")
    except RuntimeError:
        return True
    finally:
        autograd._saved_tensors_hooks_enable()
    return False


def batched(gradient: Tensor) -> bool:
    """Whether an incoming gradient stands for many at once (``is_grads_batched``, ``vectorize=True``)."""
    # Two implementations: torch.func's, and the older one that is_grads_batched still uses.
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


def differentiated(*gradients: Tensor) -> bool:
    """Whether the result must be a differentiable function of everything, or serve many gradients at once.

    Grad mode is on during a backward pass with create_graph only. What the solvers leave carries no graph: its gradient
    would look constant, and a second derivative would be wrong without a word.
    """
    return torch.is_grad_enabled() or any(batched(gradient) for gradient in gradients)


def recordable(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy that autograd can save where it was made in inference mode and that is left now."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def no_autocast() -> contextlib.AbstractContextManager[None]:
    """Autocast off inside, and float32 products in float32: certificates need the precision that the tensors have."""
    on = [device for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    return _in_their_own_precision(on) if on or FLOAT32_PRODUCTS.may_be_rounded() else _AS_IT_IS


_AS_IT_IS = contextlib.nullcontext()


@contextlib.contextmanager
def _in_their_own_precision(devices: list[str]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(FLOAT32_PRODUCTS.whole())
        yield


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Modules, and tensors without a device, are made on the host, whatever ``torch.set_default_device`` says.

    A decorator too.
    """
    here = torch.device("cpu")
    with _AS_IT_IS if torch.get_default_device() == here else here:
        yield


def not_compiled(function: Callable[..., Any], host: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """``function`` as it is, also where torch.compile traces its caller: compiled code, memories and decisions that
    numbers take are not to be traced. With the flag off nothing is changed.

    :param host: what answers while the flag is off; None: ``function``, which then asks once more.
    """
    untraced, while_off = torch._disable_dynamo(function), host or function

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if settings.rangeformer.off():
            return while_off(*args, **options)
        # Nobody traces before that module is loaded, which takes a second.
        return (untraced if "torch._dynamo" in sys.modules else function)(*args, **options)

    # Of its own code, so that the compiler counts its recompilations apart from the other hooks'.
    call.__code__ = call.__code__.replace(co_name=function.__name__)  # type: ignore[attr-defined]
    return call
