"""Average information: the curvature of a Gaussian likelihood from solves that a step can afford.

For A = K + D and a = A^-1 (y - m) the second derivative of log p(y) is -a'dA_i A^-1 dA_j a + tr(A^-1 dA_i A^-1 dA_j) / 2
(and a part with second derivatives of A), its expectation -tr(...) / 2; their average, the average information
(dA_i a)' A^-1 (dA_j a) / 2, needs a solve for every parameter instead of a trace for every pair (Gilmour, Thompson and
Cullis 1995, Biometrics 51). Parameters of the mean and their products with the others are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.observation import Observation

Columns = Float64[Tensor, "n p"]


def information(
    observation: Observation, covariance: Columns, mean: Columns
) -> tuple[Float64[Tensor, "p p"], Bool[Tensor, " p"]]:
    """The information matrix in nats, positive semi-definite, and which parameters the mean alone depends on.

    :param covariance: dA_i a for every parameter; zero columns where A does not move.
    :param mean: dm_i, likewise.
    One rough solve of as many columns as there are parameters.
    """
    moves, shifts = covariance.any(0), mean.any(0)
    linear = shifts & ~moves
    dtype = observation.rhs.dtype
    both = torch.cat([covariance[:, moves], mean[:, shifts]], 1)
    sizes = both.norm(dim=0).clamp_min(1e-300)  # float32 would lose what is tiny
    columns = (both / sizes).to(dtype)
    solved = observation.solve(columns).double()
    wide = columns.double()
    # To second order in what the solve left: b'x + x'(b - A x) would need a pass; b'x of CG is a lower bound.
    products = wide.mT @ solved
    products = (0.5 * (products + products.mT) * sizes * sizes.unsqueeze(1)).cpu()
    count = int(moves.sum())
    size = covariance.shape[1]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    own, others = moves.nonzero().squeeze(1).cpu(), shifts.nonzero().squeeze(1).cpu()
    within, across, inner = products[:count, :count], products[:count, count:], products[count:, count:]
    # What is half of the covariance's own part after the mean has been fitted, (dA_i a)' P (dA_j a) / 2, has this for
    # its part before: the whole stays positive semi-definite.
    if len(others):
        explained = across @ torch.linalg.pinv(inner, hermitian=True) @ across.mT
        within = 0.5 * (within + explained)
    else:
        within = 0.5 * within
    matrix[own.unsqueeze(1), own] += within
    matrix[own.unsqueeze(1), others] += across
    matrix[others.unsqueeze(1), own] += across.mT
    matrix[others.unsqueeze(1), others] += inner
    return matrix, linear.cpu()


def analytic_columns(observation: Observation, tensors: Sequence[Tensor]) -> tuple[Columns, Columns] | None:
    """dA_i a and dm_i for every number of ``tensors``, or None where the kernel has no fused form of their own."""
    fused = observation.fused
    if fused is None or not fused.parameters or _points_move(fused, tensors):
        return None
    a = observation.solution[:, 0].detach()
    jacobian = torch.cat([_jacobian(parameter, tensors) for parameter in fused.parameters])
    columns = fused.parameter_products(a) @ jacobian.to(a.device)
    noise = _derivatives(observation.noise, tensors)
    mean = -_derivatives(observation.rhs.squeeze(-1), tensors)
    return columns + noise * a.double().unsqueeze(-1), mean


def columns_by_differences(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], phi: Float64[Tensor, " p"], step: float
) -> tuple[Columns, Columns]:
    """The same by central differences.

    :param evaluate: phi -> (A a, m), n numbers each.
    """
    products, means = [], []
    for index in range(len(phi)):
        ends = []
        for signed in (step, -step):
            moved = phi.clone()
            moved[index] += signed
            ends.append(evaluate(moved))
        (above, mean_above), (below, mean_below) = ends
        products.append((above - below) / (2 * step))
        means.append((mean_above - mean_below) / (2 * step))
    return torch.stack(products, 1), torch.stack(means, 1)


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
        return torch.zeros(count, size, dtype=torch.float64)
    units = torch.eye(count, dtype=output.dtype, device=output.device).reshape(count, *output.shape)
    found = torch.autograd.grad(output, tensors, units, retain_graph=True, allow_unused=True, is_grads_batched=True)
    parts = [
        units.new_zeros(count, tensor.numel()) if part is None else part.reshape(count, -1)
        for part, tensor in zip(found, tensors, strict=True)
    ]
    return torch.cat(parts, 1).double().cpu()


def _derivatives(output: Tensor, tensors: Sequence[Tensor]) -> Columns:
    """Of n numbers, forward: by differentiating, with respect to its weights, a weighted sum's gradient."""
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
