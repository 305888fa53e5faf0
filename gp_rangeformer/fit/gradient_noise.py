"""How much of what a fit could still gain its probes alone explain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.fit.trust_region import QuadraticModel
from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.gradient_error import gradients_by_groups
from gp_rangeformer.plugin.observation import Observation
from gp_rangeformer.solvers.gradient_weight import GradientWeight
from gp_rangeformer.torch_modes import no_autocast


def group_gradients(observation: Observation, tensors: Sequence[Tensor]) -> Float64[Tensor, "g p"] | None:
    """The gradient of log p(y) in nats for every number of ``tensors``, as each of a few groups of probes alone has it;
    None where nothing is estimated, or GPyTorch has made K. Four contractions of K's gradient, or five."""
    weight, fused = observation.evaluation.weight, observation.fused
    if not isinstance(weight, GradientWeight) or fused is None or not weight.probes.shape[1]:
        return None
    with no_autocast():
        return gradients_by_groups(weight, lambda part: _through(fused, observation.noise, part, tensors))


def explained_by_noise(model: QuadraticModel, groups: Float64[Tensor, "g p"]) -> float:
    """What a quadratic model would promise on average where nothing is left to gain, from the spread of gradients (per
    point) between groups of probes."""
    count = len(groups)
    spread = groups - groups.mean(0)
    promised = [QuadraticModel(own, model.curvature).newton_decrement() for own in spread]
    return sum(promised) / (count * (count - 1))


def _through(fused: FusedKernel, noise: Tensor, weight: ThinWeight, tensors: Sequence[Tensor]) -> Tensor:
    contracted = fused.contract(weight.left, weight.right, weight.diagonal, weight.conditional)
    pairs = [*zip(fused.arguments, contracted, strict=True), (noise, weight.own_diagonal())]
    asked = [(output, gradient.to(output)) for output, gradient in pairs if output.requires_grad]
    found = torch.autograd.grad(
        [output for output, _ in asked],
        tensors,
        [gradient for _, gradient in asked],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([part.reshape(-1).double().cpu() for part in found])
