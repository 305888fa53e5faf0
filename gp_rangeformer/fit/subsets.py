"""The same model on some of its points: a cheap place to look for a start."""

from __future__ import annotations

import copy
from typing import Any

import torch
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from jaxtyping import Int

# Each level has so many times fewer points than the one above, so that all of them together cost a fraction of it.
RATIO, SMALLEST = 5, 200


def level_sizes(n: int) -> list[int]:
    """Ascending, without n itself."""
    sizes, size = [], n // RATIO
    while size >= SMALLEST:
        sizes.append(size)
        size //= RATIO
    return sizes[::-1]


def can_be_thinned(mll: Any) -> bool:
    """Whether rows of inputs and targets belong together one by one."""
    targets, inputs = mll.model.train_targets, mll.model.train_inputs
    if targets.dim() != 1 or any(x.dim() != 2 or len(x) != len(targets) for x in inputs):
        return False
    noise = getattr(mll.likelihood, "noise_covar", None)
    return not isinstance(noise, FixedGaussianNoise) or noise.noise.shape[-1] in (1, len(targets))


def thinned(mll: Any, index: Int[torch.Tensor, " m"]) -> Any:
    """A copy of an ``ExactMarginalLogLikelihood`` in float64, of the points ``index``. The given one is left as it is,
    but for its mode (training).

    :raises TypeError: a part of it copies itself without what it holds (:class:`gpytorch.kernels.InducingPointKernel`).
    """
    mll.model.train()  # drops what predictions have cached
    inputs, targets = mll.model.train_inputs, mll.model.train_targets
    given = {id(x): x for x in (*inputs, targets)}  # not copied
    small = copy.deepcopy(mll, dict(given))
    if shared := (_parts(mll) & _parts(small)) - given.keys():
        raise TypeError(f"a copy has {len(shared)} modules and tensors of the original")
    small.double()
    chosen = index.to(targets.device)
    rows = tuple(x.detach()[chosen].double() for x in inputs)
    small.model.set_train_data(rows, targets.detach()[chosen].double(), strict=False)
    noise = getattr(small.likelihood, "noise_covar", None)
    if isinstance(noise, FixedGaussianNoise) and noise.noise.shape[-1] == len(targets):
        noise.noise = noise.noise[..., chosen].double()
    return small


def _parts(module: torch.nn.Module) -> set[int]:
    return {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}
