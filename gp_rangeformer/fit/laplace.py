"""Laplace's approximation for labels and counts: the mode of the latent values, and the evidence there.

With a = d log p(y | f) / df and W = -d^2 log p(y | f) / df^2 at latent values f, a Newton step towards their mode is
exact regression: of targets z = f + a / W whose noise has the variance 1 / W. Every solve is one with A = K + W^-1, and
the model that is left behind is such a regression. (Rasmussen and Williams 2006, sections 3.4 and 5.5.1.)
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import BernoulliLikelihood, FixedNoiseGaussianLikelihood, Likelihood
from gpytorch.mlls import MarginalLogLikelihood
from gpytorch.models import ExactGP
from jaxtyping import Float, Float64
from linear_operator.operators import AddedDiagLinearOperator, DiagLinearOperator
from torch import Tensor

from gp_rangeformer.torch_modes import no_autocast

# Nats per point that log p(y, f) may be below its maximum, and may be where rounding ends the ascent; steps; halvings.
_GAP, _ROUNDED, _STEPS, _HALVINGS = 1e-7, 1e-5, 100, 40
# Least W_i K_ii: an observation that says less is taken to say that much. It moves the evidence by less than 5e-6 nats
# per point, and keeps 1 / W within what float32 and the residuals of solves resolve.
_LEAST = 1e-5


class LaplaceError(RuntimeError):
    """The mode was not found."""


class LaplaceMarginalLogLikelihood(MarginalLogLikelihood):
    """log p(y) / n by Laplace's approximation, priors of the model included.

        model = Model(train_x, train_y, FixedNoiseGaussianLikelihood(torch.ones(n)))  # an ExactGP
        mll = LaplaceMarginalLogLikelihood(BernoulliLikelihood(), model)
        loss = -mll(model(train_x), train_y)

    Every call finds the mode and leaves it in the model, whose training targets become z and whose noise 1 / W: there
    the next call starts. So call once more after the last optimiser step; then, in evaluation mode, ``model(x)``
    predicts latent values and ``mll.likelihood(model(x))`` observations. Cost: one to four solves near the last mode,
    some ten from afar, a training step, and its right-hand sides once more.

    ``gap``: nats per point that log p(y, f) of the last call may be below its maximum (half of the Newton decrement,
    from above); ``steps``: the solves that it took.

    :param likelihood: log-concave, of one observation given its latent value, without free parameters: a
        :class:`gpytorch.likelihoods.BernoulliLikelihood`, whose labels are 0 and 1, or any whose ``forward`` makes a
        distribution with a three times differentiable ``log_prob``.
    :param model: of a single output, with a :class:`gpytorch.likelihoods.FixedNoiseGaussianLikelihood`.
    :raises ValueError: others.
    """

    def __init__(self, likelihood: Likelihood, model: ExactGP) -> None:
        if not isinstance(model, ExactGP) or not isinstance(model.likelihood, FixedNoiseGaussianLikelihood):
            raise ValueError(
                "Laplace's approximation needs an ExactGP with a FixedNoiseGaussianLikelihood(torch.ones(n)): there "
                "the noise of pseudo targets will be"
            )
        if any(parameter.requires_grad for parameter in likelihood.parameters()):
            kind = type(likelihood).__name__
            raise ValueError(f"parameters of {kind} are not trained here: fix them with requires_grad_(False)")
        super().__init__(likelihood, model)
        self.model: Any  # which GPyTorch types as a module
        self.gap, self.steps = math.inf, 0

    def forward(self, function_dist: MultivariateNormal, target: Tensor) -> Tensor:
        """A scalar, with a graph.

        :param function_dist: ``model(train_x)`` in training mode.
        :param target: labels or counts, n.
        :raises ValueError: targets that are not n observations which the likelihood knows.
        :raises LaplaceError: no mode was found, or the likelihood is not log-concave there.
        """
        mean: Any = function_dist.mean
        kernel: Any = function_dist.lazy_covariance_matrix.evaluate_kernel()
        self._check(mean, target)
        with torch.no_grad():
            mode = self._mode(kernel, mean.double(), target.double())
        noise = (1 / mode.curvature).to(mean.dtype)
        self.model.set_train_data(targets=mode.pseudo_targets.to(mean.dtype), strict=False)
        self.model.likelihood.noise = noise.clone()
        noise.requires_grad_(torch.is_grad_enabled())
        residual = self.model.train_targets - mean
        inv_quad, logdet = _system(kernel, noise).inv_quad_logdet(residual.unsqueeze(-1), logdet=True)
        with_gradient = -0.5 * (inv_quad + logdet)
        if with_gradient.requires_grad:
            with_gradient = with_gradient + self._of_the_mode(kernel, mode, noise, residual, logdet)
        # log|I + K W| = log|A| + log|W|; the quadratic form is part of what the mode maximises.
        value = mode.joint - 0.5 * (logdet.detach().double() + mode.curvature.log().sum())
        result = with_gradient + (value - with_gradient.detach().double()).to(mean.dtype)
        for _, module, prior, closure, _ in self.model.named_priors():
            result = result + prior.log_prob(closure(module)).sum()
        return result / len(target)

    def _of_the_mode(self, kernel: Any, mode: _Mode, noise: Tensor, residual: Tensor, logdet: Tensor) -> Tensor:
        """A number with the gradient that the evidence has through the mode.

        With s = d evidence / df = 1/2 diag((K^-1 + W)^-1) d^3 log p / df^3 and u = A^-1 s / W that is u'dA a + u'dm: a
        quarter of (b - c)'A^-1 (b - c) - (b + c)'A^-1 (b + c), for b = z - m and a fixed c = s / W. The diagonal is
        1 / W - diag(A^-1) / W^2, the latter known as the gradient of log|A|, from its own probes; between 0 and
        K_ii / (1 + W_i K_ii).
        """
        (inverse_diagonal,) = torch.autograd.grad(logdet, noise, retain_graph=True)
        told = mode.curvature * kernel.diagonal().detach()
        share = (1 - inverse_diagonal / mode.curvature).clamp_min(0).minimum(told / (1 + told))
        moved = (0.5 * mode.third / mode.curvature.square() * share).to(residual.dtype)
        columns = torch.stack([residual - moved, residual + moved], dim=1)
        system = _system(kernel, noise.detach())
        less, more = system.inv_quad_logdet(columns, logdet=False, reduce_inv_quad=False)[0]
        return 0.25 * (less - more)

    def _check(self, mean: Tensor, target: Tensor) -> None:
        noise = self.model.likelihood.noise
        if mean.dim() != 1 or target.shape != mean.shape or noise.shape != mean.shape:
            raise ValueError(
                f"a model of one output needs as many targets and noise variances as points, got {tuple(mean.shape)} "
                f"values, {tuple(target.shape)} targets and {tuple(noise.shape)} variances"
            )
        if not bool(target.isfinite().all()):
            raise ValueError("the targets hold NaN or infinity: leave those points out")
        if isinstance(self.likelihood, BernoulliLikelihood) and not bool(((target == 0) | (target == 1)).all()):
            raise ValueError("a BernoulliLikelihood needs the labels 0 and 1")
        with contextlib.suppress(NotImplementedError):  # distributions need not say what they are of
            support: Any = self.likelihood(torch.zeros_like(target, dtype=mean.dtype)).support
            outside = int((~support.check(target)).sum())
            if outside:
                kind = type(self.likelihood).__name__
                raise ValueError(f"{outside} targets are none that a {kind} knows: they must be {support}")

    def _mode(self, kernel: Any, mean: Float64[Tensor, " n"], target: Float64[Tensor, " n"]) -> _Mode:
        """Newton steps for the weights x of f = m + K x, halved as long as log p(y, f) falls."""

        def at(weights: Tensor) -> _Mode:
            return _mode_at(self.likelihood, weights, kernel, mean, target)

        former = _solved(kernel, self.model.likelihood.noise, self.model.train_targets - mean)
        best, new = at(torch.zeros_like(mean)), at(former)
        best = new if bool(new.joint >= best.joint) else best
        self.steps, self.gap = 1, math.inf
        while self.steps < _STEPS:
            missing = best.slope - best.weights
            # From above: (K^-1 + W)^-1 <= W^-1.
            before, self.gap = self.gap, float(0.5 * (missing.square() / best.curvature).mean())
            if self.gap < _GAP or 0.5 * before < self.gap < _ROUNDED:
                break
            step = _solved(kernel, 1 / best.curvature, missing / best.curvature)
            self.steps += 1
            for _ in range(_HALVINGS):
                new = at(best.weights + step)
                if bool(new.joint >= best.joint):
                    break
                step = 0.5 * step
            else:
                break
            best = new
        if not self.gap < _ROUNDED:
            raise LaplaceError(
                f"no mode: log p(y, f) may be {self.gap:.1g} nats per point below its maximum after {self.steps} "
                "solves; float64 helps where 1 / W is far below the kernel's variance"
            )
        if not best.log_concave:
            raise LaplaceError(f"{type(self.likelihood).__name__} is not log-concave at the mode")
        return best


@dataclass(frozen=True)
class _Mode:
    """At f = m + K x: the ``weights`` x; ``joint``: log p(y | f) - x'K x / 2; ``slope``, ``curvature``, ``third``: a, W
    and the third derivative of log p(y | f)."""

    weights: Float64[Tensor, " n"]
    latent: Float64[Tensor, " n"]
    joint: Float64[Tensor, ""]
    slope: Float64[Tensor, " n"]
    curvature: Float64[Tensor, " n"]
    third: Float64[Tensor, " n"]
    log_concave: bool

    @property
    def pseudo_targets(self) -> Float64[Tensor, " n"]:
        return self.latent + self.slope / self.curvature


def _mode_at(
    likelihood: Any,
    weights: Float64[Tensor, " n"],
    kernel: Any,
    mean: Float64[Tensor, " n"],
    target: Float64[Tensor, " n"],
) -> _Mode:
    with no_autocast():
        moved = (kernel @ weights.to(kernel.dtype).unsqueeze(-1)).squeeze(-1).double()
    latent = mean + moved
    with torch.enable_grad():
        f = latent.clone().requires_grad_()
        if isinstance(likelihood, BernoulliLikelihood):  # its own log_prob rounds to 0 and 1 in the tails
            log_density = torch.special.log_ndtr((2 * target - 1) * f)
        else:
            log_density = likelihood.forward(f).log_prob(target)
        slope = _derivative(log_density, f)
        second = _derivative(slope, f)
        third = _derivative(second, f).detach()
    second, least = second.detach(), _LEAST / kernel.diagonal().double()
    curvature = torch.maximum(-second, least)
    joint = log_density.detach().sum() - 0.5 * weights @ moved
    log_concave = bool((second <= least).all())
    third = torch.where(curvature > least, third, 0.0)
    return _Mode(weights, latent, joint, slope.detach(), curvature, third, log_concave)


def _derivative(values: Float64[Tensor, " n"], f: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    return torch.autograd.grad(values.sum(), f, create_graph=True)[0]


def _system(kernel: Any, noise: Any) -> Any:
    """K + diag(noise)."""
    diagonal: Any = DiagLinearOperator(noise)
    return AddedDiagLinearOperator(kernel, diagonal)


def _solved(kernel: Any, noise: Float[Tensor, " n"], rhs: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """(K + diag(noise))^-1 rhs, by whoever answers for the kernel."""
    column = rhs.to(kernel.dtype).unsqueeze(-1)
    return _system(kernel, noise.to(kernel.dtype)).solve(column).squeeze(-1).double()
