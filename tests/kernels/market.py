"""GPyTorch kernels of every recognised kind, and values and gradients of K by GPyTorch and by tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    Kernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.recognition import recognise

DIM = 3

LEAVES: dict[str, Callable[..., Kernel]] = {
    "rbf": RBFKernel,
    "matern12": lambda **options: MaternKernel(0.5, **options),
    "matern32": lambda **options: MaternKernel(1.5, **options),
    "matern52": lambda **options: MaternKernel(2.5, **options),
    "rq": RQKernel,
    "periodic": PeriodicKernel,
}

KERNELS: dict[str, Callable[[], Kernel]] = {
    **{name: leaf for name, leaf in LEAVES.items()},
    **{f"{name}_ard": lambda leaf=leaf: leaf(ard_num_dims=DIM) for name, leaf in LEAVES.items()},
    **{f"{name}_active": lambda leaf=leaf: leaf(ard_num_dims=2, active_dims=(2, 0)) for name, leaf in LEAVES.items()},
    "constant": ConstantKernel,
    "scale": lambda: ScaleKernel(MaternKernel(1.5, ard_num_dims=DIM)),
    "scale_of_active": lambda: ScaleKernel(RBFKernel(active_dims=(1,))),
    "scale_of_scale": lambda: ScaleKernel(ScaleKernel(RBFKernel(active_dims=(1, 2)))),
    "sum": lambda: AdditiveKernel(RBFKernel(), MaternKernel(1.5, active_dims=(0,)), ConstantKernel()),
    "product": lambda: ProductKernel(RBFKernel(active_dims=(0, 1)), MaternKernel(2.5), PeriodicKernel()),
    "scaled_sum": lambda: ScaleKernel(ScaleKernel(RBFKernel()) + ScaleKernel(RQKernel())),
    "sum_of_products": lambda: (
        ScaleKernel(RBFKernel() * PeriodicKernel(active_dims=(1,)))
        + RQKernel(ard_num_dims=DIM) * ScaleKernel(RBFKernel())
    ),
    "product_of_sums": lambda: ProductKernel(
        AdditiveKernel(RBFKernel(), ConstantKernel()), AdditiveKernel(MaternKernel(2.5), ScaleKernel(PeriodicKernel()))
    ),
}


class Derived(NamedTuple):
    """K and the gradients of sum(W * K), parameters by name and "x"."""

    kernel: Tensor
    gradients: dict[str, Tensor]


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 3) -> Kernel:
    """Every raw parameter moved off its default."""
    kernel = KERNELS[name]().to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in kernel.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return kernel


def points(n: int, dtype: torch.dtype = torch.float64, d: int = DIM, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def factors(n: int, m: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """left n x m, right n x m and a diagonal."""
    generator = torch.Generator().manual_seed(7)
    left, right = torch.randn(2, n, m, generator=generator, dtype=torch.float64).to(dtype)
    return left, right, torch.rand(n, generator=generator, dtype=torch.float64).to(dtype)


def recognised(kernel: Kernel, x: Tensor) -> FusedKernel:
    fused = recognise(kernel, x)
    assert fused is not None
    return fused


def by_host(kernel: Kernel, x: Tensor, weight: Tensor, inputs: bool = False) -> Derived:
    return _derived(kernel, x, weight, inputs, lambda points: kernel(points).to_dense())


def by_tiles(kernel: Kernel, x: Tensor, weight: Tensor, inputs: bool = False) -> Derived:
    return _derived(kernel, x, weight, inputs, lambda points: recognised(kernel, points).dense())


def by_thin_tiles(kernel: Kernel, x: Tensor, left: Tensor, right: Tensor, diagonal: Tensor) -> dict[str, Tensor]:
    """The gradients from factors: the arguments' gradients, pushed on by autograd."""
    kernel.zero_grad()
    fused = recognised(kernel, x)
    torch.autograd.backward(fused.arguments, fused.contract(left, right, diagonal))
    return _parameter_gradients(kernel)


def _derived(kernel: Kernel, x: Tensor, weight: Tensor, inputs: bool, evaluate: Callable[[Tensor], Tensor]) -> Derived:
    kernel.zero_grad()
    x = x.clone().requires_grad_(inputs)
    matrix = evaluate(x)
    matrix.backward(weight)
    gradients = _parameter_gradients(kernel)
    if inputs:
        gradients["x"] = torch.zeros_like(x) if x.grad is None else x.grad
    return Derived(matrix.detach(), gradients)


def _parameter_gradients(kernel: Kernel) -> dict[str, Tensor]:
    gradients = {}
    for name, parameter in kernel.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return gradients


def by_differences(x: Tensor, lengthscale: Tensor, profile: Callable[[Tensor], Tensor]) -> Tensor:
    """profile(r) with r from coordinate differences, exactly zero for coincident points; O(n^2 d) memory."""
    squares = ((x[:, None] - x[None]) / lengthscale).square().sum(-1)
    apart = squares > 0
    return profile(torch.where(apart, squares, torch.ones_like(squares)).sqrt() * apart)


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Of any gradient, relative to the norm of its own tensor."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name].double() - theirs[name].double()).norm() / theirs[name].double().norm().clamp_min(1e-30))
        for name in ours
    )
