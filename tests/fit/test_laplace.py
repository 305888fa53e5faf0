"""Laplace's approximation against dense float64 algebra: modes, evidences, gradients by differences, predictions."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import gpytorch
import pytest
import torch
from gpytorch.likelihoods import (
    BernoulliLikelihood,
    FixedNoiseGaussianLikelihood,
    GaussianLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from gpytorch.likelihoods.likelihood import _OneDimensionalLikelihood
from gpytorch.means import ConstantMean
from gpytorch.priors import NormalPrior
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.fit import LaplaceError, LaplaceMarginalLogLikelihood, laplace
from tests.fit.models import DIMENSIONS, Model, matern

_FLOOR = 5e-6  # nats per point that taking W K for 1e-5 at least moves the evidence by
_STEP = 1e-3  # of differences, on the raw parameters: they are off by its square, and by 1e-9 / 1e-3 of the values


class LogRate(_OneDimensionalLikelihood):
    """Counts of the rate exp(f)."""

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> torch.distributions.Poisson:
        return torch.distributions.Poisson(function_samples.exp())


class Case(NamedTuple):
    likelihood: type[Likelihood]
    of: Any  # latent values and a generator to targets
    outputscale: float


CASES = {
    "labels": Case(BernoulliLikelihood, lambda f, g: torch.bernoulli(torch.special.ndtr(f), generator=g), 4.0),
    "all equal": Case(BernoulliLikelihood, lambda f, g: torch.ones_like(f), 4.0),
    "separable": Case(BernoulliLikelihood, lambda f, g: (f > 0).double(), 100.0),
    "counts": Case(LogRate, lambda f, g: torch.poisson(f.exp(), generator=g), 4.0),
    "no counts": Case(LogRate, lambda f, g: torch.zeros_like(f), 4.0),
    "large counts": Case(LogRate, lambda f, g: torch.poisson((f + 5).exp(), generator=g), 4.0),
    "another link": Case(PoissonLikelihood, lambda f, g: torch.poisson((f + 3).relu(), generator=g), 4.0),
}


def build(name: str, n: int, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    x = torch.rand(n, DIMENSIONS, generator=generator, dtype=torch.float64)
    y = case.of(3 * (6 * x[:, 0]).sin() + 2 * x[:, 1] - 1, generator)
    likelihood = FixedNoiseGaussianLikelihood(torch.ones(n, dtype=dtype))
    model: Any = Model(x.to(dtype), y.to(dtype), likelihood, ConstantMean(), matern()).to(dtype)
    model.covar_module.outputscale = case.outputscale
    model.mean_module.constant = 0.3
    return LaplaceMarginalLogLikelihood(case.likelihood(), model), y.to(dtype)


class Dense(NamedTuple):
    value: float  # nats per point
    latent: Tensor
    covariance: Tensor  # of the latent values given the targets
    prior_mean: Tensor
    kernel: Tensor
    curvature: Tensor
    sensitivity: float  # what a latent value's move by its own 1 / W^1/2 does to the value, root mean square


@torch.no_grad()
def dense(mll: Any, y: Tensor) -> Dense:
    """Algorithm 3.1 of Rasmussen and Williams, and what of its value a mode that is a little off moves."""
    model = copy.deepcopy(mll.model).double().train()
    x, y = model.train_inputs[0], y.double()
    with gpytorch.settings.lazily_evaluate_kernels(True):
        kernel, mean = model.covar_module(x).to_dense(), model.mean_module(x)
    weights, f = torch.zeros_like(y), mean
    best = float(_derivatives(mll.likelihood, f, y)[0].sum())
    while True:
        _, slope, curvature, third = _derivatives(mll.likelihood, f, y)
        root = curvature.sqrt()
        factor = torch.linalg.cholesky(torch.eye(len(y), dtype=y.dtype) + root.unsqueeze(1) * kernel * root)
        b = curvature * (f - mean) + slope
        solved = torch.cholesky_solve((root * (kernel @ b)).unsqueeze(1), factor).squeeze(1)
        step, start = b - root * solved - weights, weights
        joint = -math.inf
        for halvings in range(60):
            weights = start + step / 2**halvings
            f = mean + kernel @ weights
            joint = float(_derivatives(mll.likelihood, f, y)[0].sum() - 0.5 * weights @ (f - mean))
            if joint > best:
                break
        if not joint > best + 1e-12 * abs(best):
            half = torch.linalg.solve_triangular(factor, root.unsqueeze(1) * kernel, upper=False)
            covariance = kernel - half.mT @ half
            value = (max(joint, best) - float(factor.diagonal().log().sum())) / len(y)
            moves = 0.5 * covariance.diagonal() * third / root
            return Dense(value, f, covariance, mean, kernel, curvature, float(moves.square().mean().sqrt()))
        best = joint


def _derivatives(likelihood: Any, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        f = f.clone().requires_grad_()
        if isinstance(likelihood, BernoulliLikelihood):
            density = torch.special.log_ndtr((2 * y - 1) * f)
        else:
            density = likelihood.forward(f).log_prob(y)
        (slope,) = torch.autograd.grad(density.sum(), f, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), f, create_graph=True)
        (third,) = torch.autograd.grad(second.sum(), f)
    return density.detach(), slope.detach(), -second.detach(), third


def gradient_by_differences(mll: Any, y: Tensor) -> Tensor:
    other = copy.deepcopy(mll).double()
    found = []
    for parameter in other.model.parameters():
        flat = parameter.data.view(-1)
        for index, middle in enumerate(flat.tolist()):
            values = []
            for move in (_STEP, -_STEP):
                flat[index] = middle + move
                values.append(dense(other, y).value)
            flat[index] = middle
            found.append((values[0] - values[1]) / (2 * _STEP))
    return torch.tensor(found, dtype=torch.float64)


def evaluate(mll: Any, y: Tensor) -> tuple[float, Tensor]:
    """The value and its gradient, in the order of the model's parameters."""
    mll.zero_grad()
    mll.train()
    value = mll(mll.model(*mll.model.train_inputs), y)
    value.backward()
    return float(value.detach()), torch.cat([p.grad.reshape(-1).double() for p in mll.model.parameters()])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("flag", [False, True])
def test_evidence_and_gradient_are_those_of_dense_algebra(name, flag) -> None:
    mll, y = build(name, 100)
    with settings.rangeformer(flag):
        value, gradient = evaluate(mll, y)
    reference = dense(mll, y)
    # To first order in a mode that is off by sqrt(2 gap) in the norm of W.
    allowed = reference.sensitivity * math.sqrt(2 * mll.gap) + mll.gap + _FLOOR
    assert allowed < 1e-3
    assert abs(value - reference.value) < allowed
    by_differences = gradient_by_differences(mll, y)
    assert (gradient - by_differences).abs().max() < 1e-3 * by_differences.abs().max() + allowed


def test_the_modes_own_part_of_the_gradient_matters(monkeypatch) -> None:
    mll, y = build("separable", 100)
    _, gradient = evaluate(mll, y)
    monkeypatch.setattr(LaplaceMarginalLogLikelihood, "_of_the_mode", lambda self, *parts: 0.0)
    _, without = evaluate(mll, y)
    assert (gradient - without).abs().max() > 0.1 * gradient.abs().max()


@pytest.mark.parametrize(("name", "dtype"), [("labels", torch.float32), ("counts", torch.float64)])
def test_the_certified_solver_serves_it(name, dtype) -> None:
    mll, y = build(name, 300, dtype)
    exact, also = build(name, 300)
    _, reference = evaluate(exact, also)
    with settings.rangeformer(), settings.min_size(100), collect_reports() as reports:
        value, gradient = evaluate(mll, y)
    assert {report.solver for report in reports} == {"rangeformer"}
    report = next(report for report in reports if report.operation == "inv_quad_logdet")
    assert report.mll_interval is not None
    assert abs(value - dense(mll, y).value) < 1e-3
    # The probes' own 5 % that settings.solver's gradient_tolerance allows, of the norm.
    assert (gradient - reference).norm() < 0.05 * reference.norm()


@pytest.mark.parametrize("name", ["labels", "counts"])
def test_the_model_that_is_left_predicts(name) -> None:
    mll, y = build(name, 150)
    with settings.rangeformer(), torch.no_grad():
        mll(mll.model(*mll.model.train_inputs), y)
        reference = dense(mll, y)
        mll.eval()
        x = torch.rand(40, DIMENSIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        latent = mll.model(x)
        mean, variance = latent.mean, latent.variance
        observed = mll.likelihood(mll.model(x)) if name == "labels" else None
    with torch.no_grad():
        module = mll.model.covar_module
        cross, own = module(x, mll.model.train_inputs[0]).to_dense(), module(x, diag=True)
        system = reference.kernel + torch.diag(1 / reference.curvature)
        explained = (cross * torch.linalg.solve(system, cross.mT).mT).sum(1)
        weights = torch.linalg.solve(reference.kernel, reference.latent - reference.prior_mean)
        off = math.sqrt(2 * mll.gap * len(y))  # of f in the norm of K^-1 + W, so of means in deviations
        expected = mll.model.mean_module(x) + cross @ weights
        assert ((mean - expected).abs() < off * own.sqrt() + 1e-6).all()
        torch.testing.assert_close(variance, own - explained, rtol=0.02, atol=1e-4)
        if observed is not None:
            link = expected / (1 + own - explained).sqrt()
            torch.testing.assert_close(observed.probs, torch.special.ndtr(link), rtol=0, atol=1e-2)


def test_it_starts_where_the_last_call_ended() -> None:
    mll, y = build("large counts", 100)
    evaluate(mll, y)
    cold = mll.steps
    evaluate(mll, y)
    assert mll.steps == 1 < cold


def test_a_training_loop_climbs() -> None:
    mll, y = build("labels", 100)
    optimiser = torch.optim.Adam(mll.parameters(), lr=0.1)
    values = []
    with settings.rangeformer():
        for _ in range(4):
            value, _ = evaluate(mll, y)
            values.append(value)
            for parameter in mll.parameters():
                parameter.grad = -parameter.grad
            optimiser.step()
    assert values[-1] > values[0] + 0.01


def test_priors_count() -> None:
    mll, y = build("labels", 100)
    evaluate(mll, y)
    without, _ = evaluate(mll, y)  # from there: a cold start's mode is off by another gap
    prior = NormalPrior(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    mll.model.mean_module.register_prior("mean_prior", prior, "constant")
    value, _ = evaluate(mll, y)
    expected = float(prior.log_prob(mll.model.mean_module.constant.detach())) / len(y)
    assert value - without == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.full((100,), 2.0), "labels 0 and 1"),
        (torch.full((100,), math.nan), "NaN or infinity"),
        (torch.ones(99), "as many targets"),
    ],
)
def test_targets_that_cannot_be_are_refused(target, message) -> None:
    mll, _ = build("labels", 100)
    with pytest.raises(ValueError, match=message):
        mll(mll.model(*mll.model.train_inputs), target)


def test_counts_that_cannot_be_are_refused() -> None:
    mll, y = build("counts", 100)
    with pytest.raises(ValueError, match="100 targets are none that a LogRate knows"):
        mll(mll.model(*mll.model.train_inputs), y - 0.5)


def test_models_and_likelihoods_that_are_not_covered_are_refused() -> None:
    model = build("labels", 100)[0].model
    with pytest.raises(ValueError, match="are not trained here"):
        LaplaceMarginalLogLikelihood(NegativeBinomialLikelihood(), model)
    other = Model(torch.zeros(3, DIMENSIONS), torch.zeros(3), GaussianLikelihood(), ConstantMean(), matern())
    with pytest.raises(ValueError, match="FixedNoiseGaussianLikelihood"):
        LaplaceMarginalLogLikelihood(BernoulliLikelihood(), other)


def test_a_likelihood_that_is_not_log_concave_is_refused() -> None:
    mll, y = build("labels", 100)
    likelihood = StudentTLikelihood().double().requires_grad_(False)
    likelihood.noise = 0.01
    robust = LaplaceMarginalLogLikelihood(likelihood, mll.model)
    with pytest.raises(LaplaceError, match="log-concave"):
        robust(mll.model(*mll.model.train_inputs), 5 * y)


def test_a_mode_that_is_not_found_is_an_error(monkeypatch) -> None:
    mll, y = build("separable", 100)
    monkeypatch.setattr(laplace, "_STEPS", 2)
    with pytest.raises(LaplaceError, match="nats per point below its maximum after 2 solves"):
        mll(mll.model(*mll.model.train_inputs), y)
