"""How much each input matters to a trained kernel, by its length-scales."""

from __future__ import annotations

import math
from typing import Any

import torch
from gpytorch.kernels import (
    AdditiveKernel,
    Kernel,
    LinearKernel,
    PeriodicKernel,
    ProductKernel,
    ScaleKernel,
)
from torch import Tensor

from gp_rangeformer.regression.kernels import DecayingPeriodicKernel


def inverse_squares(kernel: Kernel, d: int) -> Tensor:
    """1 / length-scale^2 of each of the d inputs, float64.

    In these units 1 - k / variance is half the squared distance near 0, for RBF, rational quadratic and periodic
    kernels; it is the variance of the slope along an input over that of the function. So the entries of a product add,
    those of a sum are averaged with the variances for weights, and a linear part has a slope of its own variance.

    :raises ValueError: no part of the kernel has a length-scale.
    """
    with torch.no_grad():
        if not any(part.has_lengthscale for part in kernel.modules() if isinstance(part, Kernel)):
            raise ValueError(f"{type(kernel).__name__} has no length-scale: it does not say how much an input matters")
        return _part(kernel, torch.arange(d, device="cpu"), d)[1]


def _part(kernel: Any, inputs: Tensor, d: int, selects: bool = True) -> tuple[float, Tensor]:
    """Variance and inverse squares; ``inputs``: which of all d the kernel is given; whether it selects from them."""
    if selects and kernel.active_dims is not None:
        inputs = inputs[kernel.active_dims.cpu()]
    if isinstance(kernel, ScaleKernel):
        # It has taken its base's dimensions over, and calls its forward.
        weight, squares = _part(kernel.base_kernel, inputs, d, selects=False)
        return float(kernel.outputscale) * weight, squares
    if isinstance(kernel, DecayingPeriodicKernel):
        kernel = ProductKernel(kernel.drift, kernel.cycle)
    if isinstance(kernel, AdditiveKernel | ProductKernel):
        parts = [_part(part, inputs, d) for part in kernel.kernels]
        weights = torch.tensor([weight for weight, _ in parts], dtype=torch.float64, device="cpu")
        squares = torch.stack([squares for _, squares in parts])
        if isinstance(kernel, ProductKernel):
            return float(weights.prod()), squares.sum(dim=0)
        return float(weights.sum()), weights @ squares / weights.sum()
    found = torch.zeros(d, dtype=torch.float64, device="cpu")
    if isinstance(kernel, LinearKernel):
        # Inputs are standardised: each adds its variance to that of the function.
        slopes = kernel.variance.detach().double().cpu().reshape(-1).expand(len(inputs))
        found[inputs] = slopes / slopes.sum()
        return float(slopes.sum()), found
    if kernel.has_lengthscale:
        found[inputs] = _of_lengthscales(kernel)
    return 1.0, found


def _of_lengthscales(kernel: Kernel) -> Tensor:
    lengthscale: Tensor = kernel.lengthscale.detach().double().cpu().reshape(-1)
    if isinstance(kernel, PeriodicKernel):
        # exp(-2 sin^2(pi x / p) / l) is 1 - (2 pi / p)^2 x^2 / (2 l) near 0.
        period: Tensor = kernel.period_length.detach().double().cpu().reshape(-1)
        return (2 * math.pi / period).square() / lengthscale
    return lengthscale.square().reciprocal()
