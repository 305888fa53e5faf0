"""How far the probes let a gradient be off: its standard error for every hyperparameter, from their own spread.

The gradient of log|A| is a mean over probes, so their spread says how well it is known, as for any mean. For the noise
and for the scale of K every probe's own value is at hand. For the parameters of a fused kernel a weight is contracted
for each of a few groups of probes, which costs some contractions: at a model's first step and at every 50th.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.kernels.expression import parameter_names
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.ranges.memory import Memory
from gp_rangeformer.report import NEGLIGIBLE_ERROR, GradientError, HyperparameterGradient
from gp_rangeformer.solvers.gradient_weight import GradientWeight

CHECK_EVERY = 50
_GROUPS = 4
# Of the relative standard error of tr(A^-1): growth that calls for another check, and a level at which it does not.
_GROWN, _UNMOVED = 1.5, 1e-4


@dataclass
class GradientCheck:
    """Measures one training step's gradient; ``found`` is what it saw last.

    :param fused: the kernel whose parameters are asked about, or None: then noise and scale of K alone.
    :param noise: the diagonal of D, n.
    :param tolerance: standard error allowed, relative to the gradient (norms over all log parameters).
    """

    fused: FusedKernel | None
    noise: Tensor
    memory: Memory
    tolerance: float
    found: GradientError | None = None

    def due(self, quadratic: Float64[Tensor, " p"]) -> bool:
        """Whether this step is measured; counts it. A model's first step is, every 50th, and one in which the spread of
        the probes' own quadratic forms z' A^-1 z has grown by half since the last time."""
        spread = float(quadratic.std() / quadratic.mean().abs()) / math.sqrt(len(quadratic))
        counted = self.memory.take_gradient_check(CHECK_EVERY)
        grown = spread > max(_GROWN * self.memory.gradient_spread, _UNMOVED)
        if counted or grown:
            self.memory.gradient_spread = spread
        else:
            self._recall()
        return counted or grown

    def __call__(self, weight: GradientWeight, quadratic: float) -> float:
        """The standard error over what is allowed. O(n p), and five contractions for a fused kernel.

        :param quadratic: y' A^-1 y.
        """
        entries = self._of_noise_and_scale(weight, quadratic) if self.fused is None else self._of_kernel(weight)
        self.found = self.memory.gradient_error = GradientError(tuple(entries))
        return self.found.excess(self.tolerance, NEGLIGIBLE_ERROR * len(self.noise))

    def _recall(self) -> None:
        """Between checks: what was found last, older by a step."""
        known = self.memory.gradient_error
        if known is not None:
            self.found = self.memory.gradient_error = replace(known, age=known.age + 1)

    def _of_noise_and_scale(self, weight: GradientWeight, quadratic: float) -> list[HyperparameterGradient]:
        """Of a common factor of D, and of one of K: z'K u = z'z - z'D u is as uncertain, with the other sign."""
        n, noise = len(self.noise), self.noise.double().unsqueeze(-1)
        x, u, z = (part.double() for part in (weight.solutions, weight.probe_solutions, weight.probes))
        traces = (u * z * noise).sum(0)
        if weight.inverse is not None:
            # The probes see A^-1 - P^-1 only; tr(D P^-1) = n - tr(D U U').
            traces = traces + n - (weight.inverse.double().square() * noise).sum()
        damped = float((x.square() * noise).sum())
        trace, error = float(traces.mean()), 0.5 * float(traces.std()) / math.sqrt(len(traces))
        return [
            HyperparameterGradient("noise", 0.5 * (damped - trace), error),
            HyperparameterGradient("scale of K", 0.5 * (quadratic - damped - (n - trace)), error),
        ]

    def _of_kernel(self, weight: GradientWeight) -> list[HyperparameterGradient]:
        """Of the noise, and of every parameter of the fused kernel that asks for a gradient."""
        assert self.fused is not None
        noise = self._of_noise_and_scale(weight, 0.0)[:1]
        parameters = [parameter for parameter in self.fused.parameters if parameter.requires_grad]
        if not parameters:
            return noise
        known = _through(self.fused, parameters, _without_probes(weight, self.noise))
        groups = torch.stack([_through(self.fused, parameters, part) for part in _groups(weight)])
        error = groups.std(0) / math.sqrt(len(groups))
        found = zip(_names(self.fused), (known + groups.mean(0)).tolist(), error.tolist(), strict=True)
        return noise + [HyperparameterGradient(*entry) for entry in found]


def _without_probes(weight: GradientWeight, noise: Tensor) -> ThinWeight:
    """d log p(y) / dK but for what the probes estimate: x x' / 2, and -P^-1 / 2 where that is a control variate."""
    x, inverse = weight.solutions, weight.inverse
    if inverse is None:
        return ThinWeight(0.5 * x, x)
    return ThinWeight(torch.cat([0.5 * x, 0.5 * inverse], 1), torch.cat([x, inverse], 1), -0.5 / noise)


def _groups(weight: GradientWeight) -> list[ThinWeight]:
    """The probes' part of d log p(y) / dK, estimated from each of a few groups of them alone."""
    count = min(_GROUPS, weight.probes.shape[1])
    pairs = zip(weight.probe_solutions.tensor_split(count, 1), weight.probes.tensor_split(count, 1), strict=True)
    return [ThinWeight(u * (-0.5 / u.shape[1]), z) for u, z in pairs]


def _through(fused: FusedKernel, parameters: list[Tensor], weight: ThinWeight) -> Tensor:
    """sum(weight * dK / d log parameter) for every number of every parameter, flat, float64 on the CPU."""
    found = fused.contract(weight.left, weight.right, weight.diagonal)
    pairs = [
        (argument, gradient)
        for argument, gradient in zip(fused.arguments, found, strict=True)
        if argument.requires_grad
    ]
    gradients = torch.autograd.grad(
        [argument for argument, _ in pairs], parameters, [gradient for _, gradient in pairs],
        retain_graph=True, allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    scaled = [(parameter * gradient).detach() for parameter, gradient in zip(parameters, gradients, strict=True)]
    return torch.cat([part.double().reshape(-1).cpu() for part in scaled])


def _names(fused: FusedKernel) -> list[str]:
    """lengthscale[0], lengthscale[1], outputscale, ...; "lengthscale 2" is that of a second kernel in a sum."""
    seen: Counter[str] = Counter()
    names = []
    for name, parameter in zip(parameter_names(fused.expression), fused.parameters, strict=True):
        seen[name] += 1
        own = name if seen[name] == 1 else f"{name} {seen[name]}"
        if parameter.requires_grad:
            count = parameter.numel()
            names += [own] if count == 1 else [f"{own}[{index}]" for index in range(count)]
    return names
