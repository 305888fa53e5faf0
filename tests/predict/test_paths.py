"""Paths are draws from GPyTorch's exact posterior, to their sampling error and that of their features."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    ConstantKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from torch import Tensor

from gp_rangeformer import Certified, Exact, settings
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.features import SpectralFeatures, coordinates
from gp_rangeformer.predict import sample_paths
from gp_rangeformer.predict.paths import FEATURES
from gp_rangeformer.predict.prior import FrozenPrior
from tests.fit.models import DIMENSIONS, Model, build, data

N, T, COUNT = 200, 25, 1000


def trained(n: int = N, **options: Any) -> Any:
    """A model whose posterior is neither its prior nor its data: a third of the prior's deviation is left."""
    model = build(n, **options).model
    model.mean_module.constant = 1.5
    model.likelihood.noise = 0.05
    if "kernel" not in options:
        model.covar_module.outputscale = 2.0
        model.covar_module.base_kernel.lengthscale = 0.3
    return model


def elsewhere(t: int = T, seed: int = 5) -> Tensor:
    return 1.1 * torch.rand(t, DIMENSIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def posterior(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance by GPyTorch, exact in float64."""
    model.eval()
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10_000):
        found = model(x)
        return found.mean, found.covariance_matrix


def covariance_of_features(model: Any, x: Tensor, features: int, seed: int = 0) -> Tensor:
    """Of the paths that sample_paths draws with these features and this seed: J K^ J' + W D W' with W = k(x, X) A^-1,
    J = [-W, 1] and K^ the features' covariance of X and x. Equal to the posterior's where K^ = K."""
    prior, noise = FrozenPrior(model), model.likelihood.noise.item()
    n = len(prior.points)
    with torch.no_grad():
        joint = torch.cat([prior.points, prior.at(x).inputs])
        arguments = embed(prior.expression, joint, prior.parameters, leading=n)
        drawn = SpectralFeatures.draw(prior.expression, arguments, features, torch.Generator().manual_seed(seed))
        phases = coordinates(arguments, len(joint)) @ drawn.frequencies.mT
        waves = torch.cat([phases.cos(), phases.sin()], 1) * drawn.variances.repeat(2).sqrt()
        kernel = model.covar_module(torch.cat([model.train_inputs[0], x])).to_dense()
        shifted = kernel[:n, :n] + noise * torch.eye(n, dtype=x.dtype)
        update = torch.linalg.solve(shifted, kernel[:n, n:]).mT
        residual = waves[n:] - update @ waves[:n]
        return residual @ residual.mT + noise * update @ update.mT + _constant_part(drawn, update)


def _constant_part(drawn: SpectralFeatures, update: Tensor) -> Tensor:
    left = 1 - update.sum(1, keepdim=True)
    return drawn.constant * left @ left.mT


def in_correlations(error: Tensor, covariance: Tensor) -> Tensor:
    deviation = covariance.diagonal().sqrt()
    return error / deviation[:, None] / deviation


def standard_error(covariance: Tensor, count: int) -> Tensor:
    """Of the entries of a Gaussian's sample covariance."""
    variance = covariance.diagonal()
    return ((variance[:, None] * variance + covariance.square()) / count).sqrt()


@functools.cache
def thousand() -> tuple[Any, Tensor, Tensor]:
    """The model, points, and 1000 paths there."""
    model, x = trained(), elsewhere()
    return model, x, sample_paths(model, COUNT)(x)


def test_mean_and_covariance_are_the_posteriors() -> None:
    """Within five standard errors: a correct draw fails in 6e-7 of the entries. The features' own error, which is
    exact given the seed and bounded by the test below, is on top of the second comparison of the covariance."""
    model, x, values = thousand()
    mean, covariance = posterior(model, x)
    given = covariance_of_features(model, x, FEATURES)
    deviation = given.diagonal().sqrt()
    assert ((values.mean(0) - mean).abs() < 5 * deviation / COUNT**0.5).all()
    sampled = (values - mean).mT @ (values - mean) / COUNT
    assert ((sampled - given).abs() < 5 * standard_error(given, COUNT)).all()
    of_features = 0.1 * deviation[:, None] * deviation
    assert ((sampled - covariance).abs() < 5 * standard_error(covariance, COUNT) + of_features).all()
    # Neither the prior nor the mean alone.
    assert 0.05 < float(covariance.diagonal().mean()) / 2 < 0.5


def test_the_error_of_features_falls_as_their_root_at_least() -> None:
    """Of the posterior's covariance, in correlations. Of 16 times as many a quarter is left."""
    model, x = trained(), elsewhere()
    covariance = posterior(model, x)[1]
    errors = {
        features: torch.stack(
            [
                in_correlations(covariance_of_features(model, x, features, seed) - covariance, covariance)
                for seed in range(4)
            ]
        )
        for features in (128, 2048)
    }
    rms = {features: float(error.square().mean().sqrt()) for features, error in errors.items()}
    assert rms[2048] < rms[128] / 2.5
    assert rms[2048] < 0.03
    assert float(errors[2048].abs().max()) < 0.1


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_coverage_of_the_posteriors_intervals(level: float) -> None:
    """The share of paths within the exact central interval at each point, within 4.5 binomial standard errors of what
    the features' deviation makes of it; that is off the level by 0.02 at most."""
    model, x, values = thousand()
    mean, covariance = posterior(model, x)
    half = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)) * covariance.diagonal().sqrt()
    given = covariance_of_features(model, x, FEATURES).diagonal().sqrt()
    expected = torch.special.erf(half / given / math.sqrt(2))
    assert ((expected - level).abs() < 0.02).all()
    inside = ((values - mean).abs() < half).double().mean(0)
    assert ((inside - expected).abs() < 4.5 * (expected * (1 - expected) / COUNT).sqrt()).all()


KERNELS: dict[str, Callable[[], Any]] = {
    "sum": lambda: (
        ScaleKernel(RBFKernel(ard_num_dims=3)) + ScaleKernel(MaternKernel(0.5, active_dims=(1,))) + ConstantKernel()
    ),
    "product": lambda: ScaleKernel(RQKernel() * PeriodicKernel(active_dims=(0,))),
    "active": lambda: MaternKernel(2.5, active_dims=(2, 0)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_other_kernels(name: str) -> None:
    model, x = trained(60, kernel=KERNELS[name]().double()), elsewhere(8)
    model.covar_module.requires_grad_(False)
    for parameter in model.covar_module.parameters():
        parameter += 0.2
    mean, covariance = posterior(model, x)
    values = sample_paths(model, COUNT, seed=3)(x)
    given = covariance_of_features(model, x, FEATURES, seed=3)
    assert (in_correlations(given - covariance, covariance).abs() < 0.15).all()
    assert ((values.mean(0) - mean).abs() < 5 * (given.diagonal() / COUNT).sqrt()).all()
    sampled = (values - mean).mT @ (values - mean) / COUNT
    assert ((sampled - given).abs() < 5 * standard_error(given, COUNT)).all()


class Warped(Model):
    """Whose kernel and mean read what a network makes of x."""

    def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood, gpytorch.means.LinearMean(2), ScaleKernel(RBFKernel()))
        self.network = torch.nn.Linear(DIMENSIONS, 2)

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.network(x).tanh())


def test_inputs_that_a_network_makes_and_noise_of_every_point() -> None:
    x, y = data(60)
    noise = torch.linspace(0.01, 0.5, 60, dtype=torch.float64)
    model = Warped(x, y, FixedNoiseGaussianLikelihood(noise)).double()
    points = elsewhere(6).requires_grad_()
    mean, covariance = posterior(model, points.detach())
    paths = sample_paths(model, COUNT)
    values = paths(points)
    # Ten per cent for the features, whose waves are few where the kernel is this smooth.
    allowed = 5 * standard_error(covariance, COUNT) + 0.1 * covariance.diagonal().max()
    sampled = (values - mean).mT @ (values - mean) / COUNT
    assert ((sampled - covariance).abs() < allowed).all()
    assert ((values.mean(0) - mean).abs() < 6 * (covariance.diagonal() / COUNT).sqrt()).all()
    values.sum().backward()
    assert points.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not paths(points.detach()).requires_grad


def test_gradients_are_those_of_differences() -> None:
    paths = sample_paths(trained(), 3)
    x = elsewhere(4).requires_grad_()
    assert torch.autograd.gradcheck(paths, x, eps=1e-6, atol=1e-5, rtol=1e-5)
    smooth = sample_paths(trained(60, kernel=ScaleKernel(RBFKernel(ard_num_dims=DIMENSIONS)).double()), 2)
    assert torch.autograd.gradgradcheck(smooth, x, eps=1e-6, atol=1e-4, rtol=1e-4)


def test_batches_and_pieces_equal_one_piece() -> None:
    paths, x = sample_paths(trained(), 5), elsewhere(24)
    whole = paths(x)
    assert whole.shape == (5, 24)
    torch.testing.assert_close(torch.cat([paths(part) for part in x.split(5)], 1), whole, rtol=0, atol=1e-11)
    batch = paths(x.reshape(2, 3, 4, DIMENSIONS))
    torch.testing.assert_close(batch, whole.reshape(5, 2, 3, 4), rtol=0, atol=1e-11)
    assert paths(x[:0]).shape == (5, 0)
    assert paths(x.reshape(2, 12, DIMENSIONS)[:, :0]).shape == (5, 2, 0)


def test_some_of_the_paths() -> None:
    paths, x = sample_paths(trained(60), 5), elsewhere(3)
    whole = paths(x)
    assert len(paths) == 5
    for chosen, rows in ((paths[1:3], [1, 2]), (paths[-1], [4]), (paths[[4, 0]], [4, 0])):
        assert len(chosen) == len(rows)
        torch.testing.assert_close(chosen(x), whole[rows], rtol=0, atol=1e-12)
    assert [len(one) for one in paths] == [1] * 5
    with pytest.raises(IndexError):
        paths[5]
    with pytest.raises(IndexError, match="no path of 5"):
        paths[5:]


def test_the_same_seed_gives_the_same_functions_and_nothing_else_moves() -> None:
    model, x = trained(), elsewhere(7)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    generator = torch.get_rng_state()
    first, again, other = (sample_paths(model, 3, seed=seed) for seed in (4, 4, 5))
    values = first(x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(again(x), values)
    assert not torch.allclose(other(x), values, atol=0.1)
    assert model.training
    assert settings.rangeformer.off()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    # They are of the model as it was.
    model.mean_module.constant = 7.0
    model.covar_module.outputscale = 5.0
    model.set_train_data(*data(50, seed=1), strict=False)
    assert torch.equal(first(x), values)
    model.eval()
    with torch.inference_mode():
        inside = sample_paths(model, 2)
    assert inside(x.requires_grad_()).sum().requires_grad


def test_the_hosts_settings_stay_as_others_see_them() -> None:
    """They are the process's: in prior mode another thread's prediction would be its model's prior."""
    seen: list[Any] = []

    class Watching(Model):
        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            seen.append((gpytorch.settings.prior_mode.on(), gpytorch.settings.lazily_evaluate_kernels.on()))
            return super().forward(x)

    model = trained(50)
    model.__class__ = Watching
    with gpytorch.settings.lazily_evaluate_kernels(False):
        paths = sample_paths(model, 3)
        values = paths(elsewhere())
    assert seen
    assert set(seen) == {(False, False)}
    torch.testing.assert_close(values, sample_paths(model, 3)(elsewhere()))


def test_certified_solves_give_the_exact_solves_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns solved to a relative residual of 1e-3, the mean to its own accuracy: off by less than a tenth of the
    posterior's deviation, a hundredth of its variance."""
    monkeypatch.setattr("gp_rangeformer.plugin.fitted._FACTORISED", 0)
    model, x = trained(400), elsewhere()
    with settings.min_size(100):
        with settings.solver(rank=40, neighbours=0):
            certified = sample_paths(model, 12)
        with settings.solver(Exact()):
            exact = sample_paths(model, 12)
    assert [(report.operation, report.solver, report.columns) for report in certified.reports] == [
        ("solve", "rangeformer", 1),
        ("solve", "rangeformer", 12),
    ]
    assert [report.solver for report in exact.reports] == ["exact", "exact"]
    mean_error = certified.reports[0].mean_error
    assert mean_error is not None
    assert mean_error <= Certified().prediction_error
    deviation = posterior(model, x)[1].diagonal().sqrt()
    difference = (certified(x) - exact(x)).abs() / deviation
    assert 0 < float(difference.max()) < 0.1


def test_float32_paths_are_the_float64_ones() -> None:
    """The same waves, weights and noise: rounding and solves move them by a few thousandths of a deviation."""
    wide, narrow, x = trained(), trained(dtype=torch.float32), elsewhere()
    found = sample_paths(narrow, 4)(x.float())
    assert found.dtype == torch.float32
    deviation = posterior(wide, x)[1].diagonal().sqrt()
    assert ((found.double() - sample_paths(wide, 4)(x)).abs() < 0.01 * deviation).all()
