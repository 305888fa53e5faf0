"""What GPyTorch has no kernel for, or none that is exact at every size."""

from __future__ import annotations

import functools
import operator
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel, ProductKernel
from torch import Tensor


class Level(gpytorch.Module):
    """One positive number, outside of any kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("raw_level", torch.nn.Parameter(torch.zeros(())))

    @property
    def level(self) -> Tensor:
        constraint: Any = self.raw_level_constraint
        return constraint.transform(self.raw_level)


class DotProductKernel(Kernel):
    """x'x' + offset. Dense."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("raw_offset", torch.nn.Parameter(torch.zeros(())))

    @property
    def offset(self) -> Tensor:
        constraint: Any = self.raw_offset_constraint
        return constraint.transform(self.raw_offset)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            return (x1 * x2).sum(-1) + self.offset
        return x1 @ x2.mT + self.offset


class DenseProductKernel(Kernel):
    """The product of kernels, of which some may be the same one. Above ``max_cholesky_size`` GPyTorch's own
    approximates its factors by Lanczos roots where the plug-in does not evaluate them."""

    def __init__(self, *kernels: Kernel) -> None:
        super().__init__()
        self.kernels = torch.nn.ModuleList(kernels)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            factors = [kernel(x1, x2, diag=True) for kernel in self.kernels]
        else:
            factors = [kernel(x1, x2).to_dense() for kernel in self.kernels]
        return functools.reduce(operator.mul, factors)

    def fused_composition(self) -> Kernel:
        kernels: Any = self.kernels
        return ProductKernel(*kernels)
