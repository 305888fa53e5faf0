"""Operations of this package's own: one start each on a device. On CUDA in Triton, and not believed before they were
tried; on a CPU the tensor operations that say what they compute."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from gp_rangeformer.kernels.gpu.device_tiles import triton_works

_AGREEING = 1e-5  # of the largest number: single precision, of sums in another order

Arguments = list[Tensor | list[Tensor] | torch.dtype | float]
_said: dict[str, tuple[Callable[..., Tensor], Callable[[], Arguments]]] = {}


@functools.cache
def answers_on(device: torch.device) -> bool:
    """Whether they are of use: on CUDA, where they can be compiled and compute what they say. Tried once per device, on
    a small problem; where they do not, a warning says so once, and the host looks at every number."""
    if device.type != "cuda" or not triton_works(device.index, torch.float32):
        return False
    try:
        from gp_rangeformer.kernels.gpu import cores  # imported here: where there is no GPU there may be no Triton

        with torch.cuda.device(device), torch.no_grad():
            wrong = differing(cores, device)
        cause: object = f"{', '.join(wrong)} computed wrong numbers"
    except Exception as error:  # whatever the compiler, the linker or the driver may raise
        wrong, cause = [""], error
    if not wrong:
        return True
    warnings.warn(
        f"training steps on {device} wait for the host several times, and are slower for small data: the Triton "
        f"kernels for small matrices failed ({cause})",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def differing(launchers: ModuleType, device: torch.device) -> list[str]:
    """Which functions of ``launchers`` give, or write into their arguments, other numbers on ``device`` than the tensor
    operations do on the CPU."""
    wrong = []
    for name, (function, example) in _said.items():
        here, there = example(), [_moved(argument, device) for argument in example()]
        expected, found = function(*here), getattr(launchers, name)(*there)
        pairs = [(expected, found), *zip(here, there, strict=True)]
        if not all(_agree(one, other) for one, other in pairs if isinstance(one, Tensor)):
            wrong.append(name)
    return wrong


def _moved(argument: object, device: torch.device) -> object:
    if isinstance(argument, list):
        return [_moved(part, device) for part in argument]
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _agree(one: Tensor, other: object) -> bool:
    assert isinstance(other, Tensor)
    if one.dim() == 3:  # parts, to be added up: as many as suit the device
        one, other = one.sum(0), other.sum(0)
    expected, found = one.double(), other.cpu().double()
    scale = float(expected.abs().max().clamp_min(1))
    return expected.shape == found.shape and float((expected - found).abs().max()) <= _AGREEING * scale


def register(signature: str, function: Callable[..., Tensor], example: Callable[[], Arguments]) -> None:
    """``torch.ops.gp_rangeformer.<name>``, as ``function`` says it; on CUDA what has this name in
    :mod:`gp_rangeformer.kernels.gpu.cores`. Once a process: modules may be loaded again, operations not.

    :param signature: name and arguments, as PyTorch's schemas spell them.
    :param example: arguments on the CPU, new ones at every call, that it is tried with.
    """
    name, arguments = signature.split("(", 1)
    _said[name] = function, example
    if hasattr(torch.ops.gp_rangeformer, name):
        return

    def launch(first: Tensor, *others: object) -> Tensor:
        from gp_rangeformer.kernels.gpu import cores  # imported here: where there is no GPU there may be no Triton

        with torch.cuda.device_of(first):  # Triton launches on the current device, wherever the numbers are
            return getattr(cores, name)(first, *others)

    torch.library.define(f"gp_rangeformer::{name}", f"({arguments} -> Tensor")
    torch.library.impl(f"gp_rangeformer::{name}", "cpu", function)
    torch.library.impl(f"gp_rangeformer::{name}", "cuda", launch)
