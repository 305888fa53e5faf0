"""The functions that a model's f is the sum of, each given the targets: trend, season and what else kernels add up to.

Of y = m + f_1 + ... + f_k + e the part f_j has the mean k_j(x, X) A^-1 (y - m) and the variance k_j(x, x) -
k_j(x, X) A^-1 k_j(X, x), with the one A = K_1 + ... + K_k + D of all (Rasmussen and Williams 2006, section 5.4.3). The
variance of a part is often a small difference of large numbers: all this is float64, by one factorisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from jaxtyping import Float, Float64
from linear_operator.operators import AddedDiagLinearOperator
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.allocation.free_memory import Demand, InsufficientMemoryError
from gp_rangeformer.allocation.workspace import shortage
from gp_rangeformer.predict.prior import checked_model, copied_model, is_botorchs, recordable_tensors, strategy_of
from gp_rangeformer.solvers.factorisation import solve_by_factor
from gp_rangeformer.torch_modes import no_autocast

_CHECKED, _OFF = 5, 1e-6  # training points at which the parts must add up, and how nearly, over the largest variance
_MATRICES, _STRIP = 3.3, 2**21  # n x n held at once; numbers of a strip of K_j(x, X)


@dataclass(frozen=True)
class Component:
    """One part of f at t points, in the units of the targets that the model holds (BoTorch's after its outcome
    transform). The means of all parts and the prior mean add up to the predictive mean; the variances do not, for parts
    are correlated given their sum."""

    name: str
    mean: Float64[Tensor, " t"]
    variance: Float64[Tensor, " t"]


@dataclass(frozen=True)
class _Part:
    name: str
    kernel: Any
    scale: float | Tensor = 1.0

    def cross(self, x: Tensor, others: Tensor) -> Tensor:
        return self.scale * self.kernel(x, others).to_dense()

    def prior(self, x: Tensor) -> Tensor:
        return self.scale * self.kernel(x, diag=True)


def components(
    model: torch.nn.Module, x: Float[Tensor, "t d"], kernels: Mapping[str, Kernel] | None = None
) -> tuple[Component, ...]:
    """The posterior of every part of a trained :class:`gpytorch.models.ExactGP` whose kernel is a sum.

        trend, season = gp_rangeformer.predict.components(model, x)

    The model has a single output and no batch; it is left as it is. n^3 / 3 multiplications and n^2 for every point and
    part, on a copy in float64; about three n x n matrices.

    :param x: as ``model`` takes it, after what else than BoTorch's input transforms comes before the kernels.
    :param kernels: names and kernels of the parts; None for those of ``model.covar_module``, a sum, or a scaled one,
        named by their classes.
    :raises ValueError: what the model is or holds is not covered, or the parts do not add up to its covariance.
    :raises InsufficientMemoryError: there is no room for the factorisation.
    :raises NotPSDError, NanError: A has no Cholesky factor, not even with the host's largest jitter.
    """
    with recordable_tensors(), no_autocast(), settings.rangeformer():
        own: Any = copied_model(checked_model(model, "components")).double()
        points = own.train_inputs[0]
        x = _checked_points(own.transform_inputs(x.to(points)) if is_botorchs(own) else x, points)
        parts = _parts(getattr(own, "covar_module", None)) if kernels is None else _given(kernels, model, own)
        factor, residual = _factorised(strategy_of(own), parts, points)
        solution = solve_by_factor(factor, residual)
        return tuple(_component(part, x, points, factor, solution) for part in parts)


def _checked_points(x: Tensor, points: Tensor) -> Tensor:
    if x.dim() == 1 and points.shape[-1] == 1:
        x = x.unsqueeze(-1)
    if x.dim() != 2 or x.shape[-1] != points.shape[-1]:
        raise ValueError(f"x must be t x {points.shape[-1]}, as the training inputs are, got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError("x holds NaN or infinity: leave those points out")
    return x.detach().to(points)


def _parts(kernel: Any) -> list[_Part]:
    """Of a sum, or of a scaled one."""
    if not isinstance(kernel, Kernel):
        raise ValueError("the model has no covar_module: name its kernels, kernels={'trend': model.trend_kernel, ...}")
    found = list(_summands(kernel, 1.0))
    if len(found) < 2:
        raise ValueError(f"{type(kernel).__name__} is no sum of kernels (k1 + k2): there is one part, the whole")
    described = [_describe(part) for part, _ in found]
    names = [
        name if described.count(name) == 1 else f"{name} {described[: position + 1].count(name)}"
        for position, name in enumerate(described)
    ]
    return [_Part(name, *pair) for name, pair in zip(names, found, strict=True)]


def _summands(kernel: Any, scale: float | Tensor) -> Iterator[tuple[Any, float | Tensor]]:
    whole = kernel.active_dims is None
    if isinstance(kernel, AdditiveKernel) and whole:
        for part in kernel.kernels:
            yield from _summands(part, scale)
    elif isinstance(kernel, ScaleKernel) and whole and isinstance(kernel.base_kernel, AdditiveKernel):
        yield from _summands(kernel.base_kernel, scale * kernel.outputscale)
    else:
        yield kernel, scale


def _describe(kernel: Any) -> str:
    if isinstance(kernel, ScaleKernel):
        return _describe(kernel.base_kernel)
    if isinstance(kernel, ProductKernel):
        return " x ".join(_describe(factor) for factor in kernel.kernels)
    return type(kernel).__name__.removesuffix("Kernel")


def _given(kernels: Mapping[str, Kernel], model: Any, own: Any) -> list[_Part]:
    """Those of the copy."""
    twins = {id(module): twin for module, twin in zip(model.modules(), own.modules(), strict=True)}
    unknown = [name for name, kernel in kernels.items() if id(kernel) not in twins]
    if unknown or not kernels:
        raise ValueError(f"kernels must be the model's own, by name: {', '.join(unknown) or 'none given'}")
    return [_Part(name, twins[id(kernel)]) for name, kernel in kernels.items()]


def _factorised(strategy: Any, parts: list[_Part], points: Tensor) -> tuple[Tensor, Tensor]:
    """L of A = L L', and y - m."""
    operator = strategy.lik_train_train_covar
    if type(operator) is not AddedDiagLinearOperator:
        raise ValueError("the likelihood adds no independent noise to every target: use a GaussianLikelihood")
    n = len(points)
    lacking = shortage(Demand(_MATRICES, 4, points.element_size()), n, points.device)
    if lacking is not None:
        raise InsufficientMemoryError(f"components of a model of {n:,} points need a float64 factorisation: {lacking}")
    kernel: Any = operator._linear_op
    dense = kernel.to_dense()
    some = points[:_CHECKED]
    total = sum(part.cross(some, some) for part in parts)
    off = (total - dense[:_CHECKED, :_CHECKED]).abs().max() / dense.diagonal().max()
    if not float(off) <= _OFF:
        raise ValueError(
            f"the parts do not add up to the model's covariance (off by {float(off):.1g} of its variance): name all "
            "kernels that the model's forward adds, and no transform before them"
        )
    dense = dense.clone()
    dense.diagonal().add_(operator._diag_tensor._diagonal())
    return psd_safe_cholesky(dense), (strategy.train_labels - strategy.train_prior_dist.loc).unsqueeze(-1)


def _component(part: _Part, x: Tensor, points: Tensor, factor: Tensor, solution: Tensor) -> Component:
    means, variances = [], []
    for some in x.split(max(1, math.floor(_STRIP / len(points)))):
        cross = part.cross(some, points)
        half = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
        means.append((cross @ solution).squeeze(-1))
        variances.append((part.prior(some) - half.square().sum(0)).clamp_min(0))
    return Component(part.name, torch.cat(means), torch.cat(variances))
