"""Operations of this package's own: one start each on a device, by Triton on CUDA, and what they say on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gp_rangeformer.kernels.gpu.device_tiles import triton_works


def answers_on(device: torch.device) -> bool:
    """Whether they are of use: on accelerators, where they can be compiled."""
    if device.type == "cpu":
        return False
    return device.type != "cuda" or triton_works(device.index, torch.float32)


def register(signature: str, function: Callable[..., Tensor]) -> None:
    """``torch.ops.gp_rangeformer.<name>``, as ``function`` says it; on CUDA what has this name in
    :mod:`gp_rangeformer.kernels.gpu.cores`. Once a process: modules may be loaded again, operations not.

    :param signature: name and arguments, as PyTorch's schemas spell them.
    """
    name, arguments = signature.split("(", 1)
    if hasattr(torch.ops.gp_rangeformer, name):
        return

    def launch(*given: object) -> Tensor:
        from gp_rangeformer.kernels.gpu import cores  # imported here: where there is no GPU there may be no Triton

        return getattr(cores, name)(*given)

    torch.library.define(f"gp_rangeformer::{name}", f"({arguments} -> Tensor")
    torch.library.impl(f"gp_rangeformer::{name}", "cpu", function)
    torch.library.impl(f"gp_rangeformer::{name}", "cuda", launch)
