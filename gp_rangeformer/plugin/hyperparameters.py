"""What a gradient is asked about: the numbers that a kernel matrix depends on, and a weight's way to them."""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.kernels.expression import parameter_names
from gp_rangeformer.kernels.fused import FusedKernel


class FusedHyperparameters:
    """The logarithms of a fused kernel's own parameters. A weight costs one contraction."""

    def __init__(self, fused: FusedKernel) -> None:
        self._fused = fused
        names = zip(parameter_names(fused.expression), fused.parameters, strict=True) if fused.parameters else ()
        self._parameters = [(name, parameter) for name, parameter in names if parameter.requires_grad]

    @property
    def names(self) -> list[str]:
        """lengthscale[0], lengthscale[1], outputscale, ...; "lengthscale 2" is that of a second kernel in a sum."""
        seen: Counter[str] = Counter()
        found = []
        for name, parameter in self._parameters:
            seen[name] += 1
            found += _numbered(name if seen[name] == 1 else f"{name} {seen[name]}", parameter)
        return found

    @property
    def parameters(self) -> list[Tensor]:
        """In the order of ``names``, without a graph."""
        return [parameter.detach() for _, parameter in self._parameters]

    def through(self, weight: ThinWeight) -> Float64[Tensor, " h"]:
        fused = self._fused
        gradients = zip(
            fused.arguments, fused.contract(weight.left, weight.right, weight.diagonal, weight.conditional), strict=True
        )
        asked = [(argument, gradient) for argument, gradient in gradients if argument.requires_grad]
        parameters = [parameter for _, parameter in self._parameters]
        found = _pulled([argument for argument, _ in asked], parameters, [gradient for _, gradient in asked])
        return _flat([parameter.detach() * gradient for parameter, gradient in zip(parameters, found, strict=True)])


def _pulled(outputs: list[Tensor], inputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(
        outputs, inputs, gradients, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return list(found)


def _flat(parts: list[Tensor]) -> Float64[Tensor, " h"]:
    if not parts:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    return torch.cat([part.detach().double().reshape(-1) for part in parts]).cpu()


def _numbered(name: str, parameter: Tensor) -> list[str]:
    count = parameter.numel()
    return [name] if count == 1 else [f"{name}[{index}]" for index in range(count)]
