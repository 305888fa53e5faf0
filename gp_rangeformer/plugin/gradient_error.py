"""How far the probes let a gradient be off: its standard error for every hyperparameter, from their own spread.

The gradient of log|A| is a mean over probes, so their spread says how well it is known, as for any mean. For the noise
and for the scale of K every probe's own value is at hand. For the parameters of a fused kernel a weight is pulled
through K for each of a few groups of probes, which costs as many contractions: at a model's first step, at every 50th,
and when parameters, targets or spread have moved far since the last. What the tolerance of the solves leaves comes on
top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.plugin.hyperparameters import FusedHyperparameters
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.report import NEGLIGIBLE_ERROR, GradientError, HyperparameterGradient
from gp_rangeformer.solvers.gradient_weight import GradientWeight

CHECK_EVERY = 50
_GROUPS = 4
# Of the relative standard error of tr(A^-1): growth that calls for another check, and a level at which it does not.
_GROWN, _UNMOVED = 1.5, 1e-4
_SMALLEST = 1e-30  # argument of a logarithm
_MOVED = 1.0  # of the logarithm of any parameter, of the noise or of y' A^-1 y


@dataclass
class GradientCheck:
    """Measures one training step's gradient; ``found`` is what it saw last.

    :param asked: a fused kernel's parameters, or None: then noise and scale of K alone.
    :param noise: the diagonal of D, n.
    :param tolerance: standard error allowed, relative to the gradient (norms over all entries).
    """

    asked: FusedHyperparameters | None
    noise: Tensor
    memory: Memory
    tolerance: float
    numbers: Callable[[], list[Tensor]]  # the noise and those parameters, on the CPU
    found: GradientError | None = None

    def due(self, probes: Float64[Tensor, " p"], quadratic: float) -> bool:
        """Whether this step is measured; counts it. Otherwise the last finding is repeated, older by a step."""
        memory = self.memory
        spread = float(probes.std() / probes.mean().abs()) / math.sqrt(len(probes))
        place = self._place(quadratic)
        former = memory.gradient_place
        moved = former is None or former.shape != place.shape or bool(((place - former).abs() > _MOVED).any())
        grown = spread > max(_GROWN * memory.gradient_spread, _UNMOVED)
        if memory.take_gradient_check(CHECK_EVERY) or grown or moved:
            memory.gradient_spread, memory.gradient_place = spread, place
            return True
        known = memory.gradient_error
        if known is not None:
            self.found = memory.gradient_error = replace(known, age=known.age + 1)
        return False

    def __call__(self, weight: GradientWeight, quadratic: float) -> float:
        """The standard error over what is allowed. O(n p), and four weights through the kernel, or five.

        :param quadratic: y' A^-1 y.
        """
        noise, scale = self._of_noise_and_scale(weight, quadratic)
        kernel = self._of_kernel(weight)
        self.found = self.memory.gradient_error = GradientError((noise, *(kernel or [scale])))
        return self.found.excess(self.tolerance, NEGLIGIBLE_ERROR * len(self.noise))

    def _place(self, quadratic: float) -> Float64[Tensor, " h"]:
        """Of other targets the gradient is another one, and the same error another share of it."""
        targets = torch.tensor([max(quadratic, _SMALLEST)], dtype=torch.float64, device="cpu").log()
        noise, *parameters = self.numbers()
        places = [noise.double().mean().log(), *(parameter.abs().log().double() for parameter in parameters)]
        return torch.cat([targets, *(place.reshape(-1) for place in places)])

    def _of_noise_and_scale(self, weight: GradientWeight, quadratic: float) -> list[HyperparameterGradient]:
        """Of a common factor of D, and of one of K: z'K u = z'z - z'D u is as uncertain, with the other sign."""
        n, noise = len(self.noise), self.noise.double().unsqueeze(-1)
        x, u, z = (part.double() for part in (weight.solutions, weight.probe_solutions, weight.probes))
        traces = (u * z * noise).sum(0)
        # Beside a control variate the probes see A^-1 - P^-1 only.
        traces = traces + weight.control_trace(self.noise) * (1 + weight.control_shares().double())
        damped = float((x.square() * noise).sum())
        trace, error = float(traces.mean()), 0.5 * float(traces.std()) / math.sqrt(len(traces))
        return [
            HyperparameterGradient("noise", 0.5 * (damped - trace), error),
            HyperparameterGradient("scale of K", 0.5 * (quadratic - damped - (n - trace)), error),
        ]

    def _of_kernel(self, weight: GradientWeight) -> list[HyperparameterGradient]:
        """Of every parameter of the kernel that asks for a gradient."""
        if self.asked is None or not self.asked.names:
            return []
        groups = gradients_by_groups(weight, self.asked.through)
        values = groups.mean(0)
        error = groups.std(0) / math.sqrt(len(groups))
        found = zip(self.asked.names, values.tolist(), error.tolist(), strict=True)
        return [HyperparameterGradient(*entry) for entry in found]


def gradients_by_groups(
    weight: GradientWeight, through: Callable[[ThinWeight], Float64[Tensor, " h"]]
) -> Float64[Tensor, "g h"]:
    """The gradient of log p(y), as each of a few groups of probes alone has it.

    :param through: a weight's way to what the gradient is asked about. Called for each group, and for the control.
    """
    groups = torch.stack([through(part) for part in _groups(weight)])
    control = weight.control()
    if control is None:
        return groups
    shares = [part.mean() for part in weight.control_shares().double().tensor_split(len(groups))]
    return groups - 0.5 * (1 + torch.stack(shares).cpu().unsqueeze(-1)) * through(control)


def _groups(weight: GradientWeight) -> list[ThinWeight]:
    """d log p(y) / dK, as each of a few groups of probes alone estimates it (but for the control variate)."""
    count = min(_GROUPS, weight.probes.shape[1])
    x = weight.solutions
    pairs = zip(weight.probe_solutions.tensor_split(count, 1), weight.probes.tensor_split(count, 1), strict=True)
    return [ThinWeight(torch.cat([0.5 * x, u * (-0.5 / u.shape[1])], 1), torch.cat([x, z], 1)) for u, z in pairs]
