"""What every parameter of a model moves: its covariance times a vector, and its mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.observation import Observation

Columns = Float64[Tensor, "n p"]
CovarianceColumns = Callable[[Tensor], Columns]  # v -> dA_i v for every parameter


def analytic_columns(observation: Observation, tensors: Sequence[Tensor]) -> CovarianceColumns | None:
    """Of every number of ``tensors``, or None where the kernel has no fused form of their own. A call costs one pass
    over pairs of points."""
    fused = observation.fused
    if fused is None or not fused.parameters or _points_move(fused, tensors):
        return None
    jacobian = torch.cat([_jacobian(parameter, tensors) for parameter in fused.parameters]).to(observation.rhs.device)
    noise = derivatives(observation.noise, tensors)

    def columns(vector: Tensor) -> Columns:
        return fused.parameter_products(vector) @ jacobian + noise * vector.double().unsqueeze(-1)

    return columns


def columns_by_differences(
    product: Callable[[Tensor, Tensor], Tensor], phi: Float64[Tensor, " p"], step: float
) -> CovarianceColumns:
    """The same by central differences of a step each.

    :param product: (phi, v) -> A(phi) v.
    """

    def columns(vector: Tensor) -> Columns:
        found = []
        for index in range(len(phi)):
            move = torch.zeros_like(phi)
            move[index] = step
            found.append((product(phi + move, vector) - product(phi - move, vector)) / (2 * step))
        return torch.stack(found, 1)

    return columns


def derivatives(output: Tensor, tensors: Sequence[Tensor]) -> Columns:
    """Of n numbers with respect to every number of ``tensors``, forward: by differentiating, with respect to its
    weights, a weighted sum's gradient. O(n) for each that they depend on."""
    size = sum(tensor.numel() for tensor in tensors)
    columns = torch.zeros(len(output), size, dtype=torch.float64, device=output.device)
    if not output.requires_grad:
        return columns
    with torch.enable_grad():
        weights = torch.zeros_like(output, requires_grad=True)
        gradients = torch.autograd.grad(output, tensors, weights, create_graph=True, allow_unused=True)
        index = 0
        for tensor, gradient in zip(tensors, gradients, strict=True):
            if gradient is not None and gradient.requires_grad:
                for offset, number in enumerate(gradient.reshape(-1)):
                    (column,) = torch.autograd.grad(number, weights, retain_graph=True, allow_unused=True)
                    if column is not None:
                        columns[:, index + offset] = column
            index += tensor.numel()
    return columns


def _points_move(fused: FusedKernel, tensors: Sequence[Tensor]) -> bool:
    """Whether some parameter moves the points themselves."""
    coordinates = [argument for argument in fused.arguments if argument.dim() == 2 and argument.requires_grad]
    own = [parameter for parameter in fused.parameters if parameter.requires_grad]
    return bool(_reached(coordinates, tensors) - _reached(own, tensors))


def _reached(outputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> set[int]:
    if not outputs:
        return set()
    ones = [torch.ones_like(output) for output in outputs]
    found = torch.autograd.grad(outputs, tensors, ones, retain_graph=True, allow_unused=True)
    return {index for index, gradient in enumerate(found) if gradient is not None}


def _jacobian(output: Tensor, tensors: Sequence[Tensor]) -> Float64[Tensor, "m p"]:
    """Of a few numbers."""
    count, size = output.numel(), sum(tensor.numel() for tensor in tensors)
    if not output.requires_grad:
        return torch.zeros(count, size, dtype=torch.float64, device="cpu")
    units = torch.eye(count, dtype=output.dtype, device=output.device).reshape(count, *output.shape)
    found = torch.autograd.grad(output, tensors, units, retain_graph=True, allow_unused=True, is_grads_batched=True)
    parts = [
        units.new_zeros(count, tensor.numel()) if part is None else part.reshape(count, -1)
        for part, tensor in zip(found, tensors, strict=True)
    ]
    return torch.cat(parts, 1).double().cpu()
