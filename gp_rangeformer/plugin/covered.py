"""What can be said of a kernel without reading a number: whether its classes have a fused form, and its tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from torch import Tensor

_OF_ONE_FORMULA = (RBFKernel, MaternKernel, RQKernel, PeriodicKernel, ConstantKernel)


def covered(kernel: Any, *, itself: bool = True) -> bool:
    """Whether :func:`~gp_rangeformer.plugin.recognition.recognise_selected` may find one matrix in ``kernel``, with one
    row for every point: it finds none in others. A microsecond or two: asked anew each time, it follows every change.

    :param itself: whether kernels that say themselves what they compute count, too.
    """
    kind = type(kernel)
    if kind is ScaleKernel:
        return not kernel._batch_shape and covered(kernel.base_kernel, itself=itself)
    if kind is AdditiveKernel or kind is ProductKernel:
        parts = kernel._modules["kernels"]._modules.values()
        return not kernel._batch_shape and all(covered(part, itself=itself) for part in parts)
    if kind in _OF_ONE_FORMULA:
        return not kernel._batch_shape
    return itself and "fused_composition" in vars(kind)


def prior_variance(kernel: Any) -> float:
    """Of a kernel that is covered: every entry on the diagonal of its matrices."""
    kind = type(kernel)
    if kind is ScaleKernel:
        return float(kernel.outputscale.detach()) * prior_variance(kernel.base_kernel)
    if kind is AdditiveKernel:
        return sum(map(prior_variance, kernel.kernels))
    if kind is ProductKernel:
        return math.prod(map(prior_variance, kernel.kernels))
    if kind is ConstantKernel:
        return float(kernel.constant.detach())
    return 1.0 if kind in _OF_ONE_FORMULA else prior_variance(kernel.fused_composition())


def parameters_of(module: torch.nn.Module) -> list[Tensor]:
    """Its parameters and its parts', one that several share as often. ``module.parameters()`` takes four times as long,
    which predictions would at every call."""
    return [tensor for part in parts_of(module) for tensor in part._parameters.values() if tensor is not None]


def tensors_of(module: torch.nn.Module) -> list[Tensor]:
    """As :func:`parameters_of`, and buffers."""
    found: list[Tensor] = []
    for part in parts_of(module):
        if part._parameters or part._buffers:
            found += [tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]
    return found


def parts_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The module, and all below it."""
    found = [module]
    for part in found:  # which grows meanwhile
        found += [child for child in part._modules.values() if child is not None]
    return found
