"""Predictions of single models at many points: what is served unevaluated, against GPyTorch's own in float64."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
import warnings
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

from gp_rangeformer import Certified, FallbackWarning, collect_reports, settings
from gp_rangeformer.plugin import fitted, predictions
from gp_rangeformer.plugin.predictive_covariance import PredictiveCovarianceOperator
from gp_rangeformer.solvers.estimated_variances import EstimatedVariances
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import DIM, KERNELS, LIKELIHOODS, MEANS, build, relative
from tests.plugin.posteriors import T, by_host, estimated, further_points, noise_of, served

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

FUSED = sorted(KERNELS.keys() - {"spectral_mixture", "linear_plus_rbf"})


def test_float32_means_do_not_depend_on_how_many_are_asked_for() -> None:
    """GPyTorch evaluates up to 512 points at once, and sums in float32 what it has evaluated."""
    problem, x = build("rational_quadratic", n=200, dtype=torch.float32), further_points(dtype=torch.float32)
    problem.likelihood.noise = 2e-4
    expected, noise = by_host(problem, x), 2e-4
    with served():
        few = problem.predict(x[:2]).mean
        many = problem.predict(x).mean
        again = problem.model(x[:2]).mean
    room = 0.02 * (expected.variance + noise).sqrt()
    assert ((many - expected.mean).abs() <= room).all()
    assert ((few - many[:2]).abs() <= 1e-4 * room[:2] + 1e-6).all()
    assert torch.equal(few, again)


@pytest.mark.parametrize("kernel", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_models_are_answered_exactly(kernel: str, dtype: torch.dtype) -> None:
    problem, x = build(kernel, dtype=dtype), further_points(dtype=dtype)
    expected = by_host(problem, x)
    with served() as reports:
        found = problem.predict(x)
        assert isinstance(found.lazy_covariance_matrix, PredictiveCovarianceOperator)
        variance, mean, covariance = found.variance, found.mean, found.covariance_matrix
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    assert relative(mean, expected.mean) < tolerance
    assert relative(covariance, expected.covariance_matrix) < tolerance
    room = tolerance * (expected.variance + noise_of(problem))
    assert ((variance - expected.variance).abs() <= room).all()
    assert [report.operation for report in reports] == ["solve", "predictive_variance"]
    assert {report.reason for report in reports} == {Reason.EXACT_SMALL}
    assert mean.dtype == variance.dtype == covariance.dtype == dtype


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_mean_and_likelihood(likelihood: str, mean: str) -> None:
    problem, x = build("ard", likelihood, mean), further_points()
    expected = by_host(problem, x)
    with served():
        found = problem.predict(x)
        assert isinstance(found.lazy_covariance_matrix, PredictiveCovarianceOperator)
        assert relative(found.mean, expected.mean) < 1e-9
        assert relative(found.variance, expected.variance) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["matern12", "ard", "nested"])
def test_estimates_are_as_near_as_they_say(kernel: str, dtype: torch.dtype) -> None:
    """Within six of their standard errors at all of 600 points (2e-9 each of a normal distribution; terms of 64 pairs
    have longer tails), which are themselves what the errors are; never above what is certain."""
    problem, x = build(kernel, n=500, dtype=dtype), further_points(dtype=dtype)
    expected, noise = by_host(problem, x), noise_of(problem)
    with estimated() as reports:
        found = problem.predict(x)
        variance = found.variance.double()
    whole = expected.variance + noise
    off = (variance - expected.variance) / whole
    report = reports[-1]
    assert (report.operation, report.solver, report.reason) == ("predictive_variance", "rangeformer", Reason.CONVERGED)
    stated = report.variance_error
    assert stated is not None
    assert stated <= 0.01 or "255 neighbours" in report.summary()
    assert off.abs().max() < max(6 * 5 * stated, 1e-5)  # no point's error is five times the root mean square
    root_mean_square = float(off.square().mean().sqrt())
    assert stated < 1e-6 or 0.4 * stated < root_mean_square < 2.5 * stated
    assert (variance >= 0).all()
    assert ((found.mean - expected.mean).abs() <= 0.02 * whole.sqrt()).all()
    assert "off by at most" in report.summary()


def test_a_bound_from_above_is_one() -> None:
    problem, x = build("matern12", n=500), further_points()
    expected, noise = by_host(problem, x), noise_of(problem)
    with estimated():
        problem.predict(x)
        model = fitted.fitted_model(problem.model.prediction_strategy)
        assert model is not None
        system = model.linear_system()
        estimator = model.estimated(system)
        assert estimator is not None
        cross = predictions.CrossKernel(model.fused.expression, problem.x, x, model.fused.parameters)
        found = estimator.of(cross, 0.01)
    assert (found.upper >= expected.variance - 1e-9).all()
    assert (found.value <= found.upper).all()
    off = (found.value - expected.variance).abs()
    assert (off <= 6 * found.standard_error + 1e-9).all()
    assert found.excess(noise) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_points_of_a_large_model_are_certified(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a factorisation would take long."""
    monkeypatch.setattr("gp_rangeformer.plugin.posterior._MULTIPLICATIONS", 0)
    monkeypatch.setattr("gp_rangeformer.plugin.fitted._FACTORISED", 0)
    problem, x = build("ard", n=700, dtype=dtype), further_points(20, dtype)
    expected, noise = by_host(problem, x), noise_of(problem)
    with settings.min_size(100), served(rank=20, neighbours=16) as reports:
        variance = problem.predict(x).variance
    assert ((variance - expected.variance).abs() <= 0.01 * (expected.variance + noise)).all()
    assert reports[-1].solver == "rangeformer"
    assert reports[-1].variance_error is not None
    assert 0 < reports[-1].variance_error <= 0.01


@pytest.mark.parametrize("fits", [True, False])
def test_estimates_that_are_not_what_they_say(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factorisation answers; where none fits the report says so."""
    problem, x = build("ard", n=500), further_points()
    original = EstimatedVariances.of

    def wrong(self: EstimatedVariances, cross: Any, allowed: float) -> Any:
        found = original(self, cross, allowed)
        return dataclasses.replace(found, value=0.5 * found.value, standard_error=1e-6 * found.value)

    monkeypatch.setattr(EstimatedVariances, "of", wrong)
    monkeypatch.setattr("gp_rangeformer.plugin.posterior.exact_path_fits", lambda *arguments: fits)
    with estimated() as reports, warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        variances = [problem.predict(x).variance, problem.model(x).variance]
    if fits:
        assert all(relative(variance, by_host(problem, x).variance) < 1e-8 for variance in variances)
        assert [report.reason for report in list(reports)[1:]] == [Reason.ESTIMATES, Reason.ESTIMATES]
    else:
        assert all("more than their standard errors allow" in report.summary() for report in list(reports)[1:])


def test_many_points_beside_a_factor_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factorisation has answered for the mean; so many solves with it would take longer."""
    monkeypatch.setattr("gp_rangeformer.plugin.posterior._MULTIPLICATIONS", 500**2 * 100)
    problem, x = build("ard", n=500), further_points()
    expected = by_host(problem, x)
    with settings.min_size(100), served(rank=20, neighbours=16) as reports, warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        variance = problem.predict(x).variance
        few = problem.model(x[:90]).mean
    assert few.shape == (90,)
    solvers = [(report.operation, report.solver) for report in reports]
    assert solvers == [("solve", "exact"), ("predictive_variance", "rangeformer")]
    stated = reports[-1].variance_error
    assert stated is not None
    assert ((variance - expected.variance) / (expected.variance + noise_of(problem))).abs().max() < 30 * stated


def test_little_noise_in_float32_is_noted() -> None:
    problem, x = build("matern32", n=300, dtype=torch.float32), further_points(dtype=torch.float32)
    problem.likelihood.noise = 1.1e-4
    problem.model.covar_module.base_kernel.lengthscale = 1.0
    expected = by_host(problem, x)
    with served() as reports:
        off = (problem.predict(x).mean - expected.mean).abs().max() / 1.1e-4**0.5
    note = re.search(r"move means by ([\d.e+-]+) of the noise", reports[0].summary())
    assert note is not None
    assert 0.1 * float(note[1]) < off < 10 * float(note[1])
    with served() as reports:
        build("matern32", n=300).predict(further_points())
    assert "float64 helps" not in reports[0].summary()


def test_next_to_little_noise_float32_means_do_not_jump_from_point_to_point() -> None:
    """Entries of K that are rounded move a mean as a whole; those of K(test, train) would move each point alone."""
    problem = build("matern32", n=300, dtype=torch.float32)
    problem.likelihood.noise = 1.1e-4
    problem.model.covar_module.base_kernel.lengthscale = 1.0
    x = 0.3 + torch.linspace(0, 1e-3, T)[:, None].expand(T, DIM)
    wide = x.double().requires_grad_()
    host = copy.deepcopy(problem)
    host.model.double()
    expected = host.predict(wide).mean
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    narrow = x.clone().requires_grad_()
    with settings.rangeformer(), collect_reports() as reports:
        mean = problem.predict(narrow).mean
    (found,) = torch.autograd.grad(mean.sum(), narrow)
    note = re.search(r"move means by ([\d.e+-]+) of the noise", reports[0].summary())
    assert note is not None
    off = (mean.double() - expected).detach()
    # The spread of what rounding adds to T means is about six of its deviations where each has its own.
    assert float(off.max() - off.min()) < 0.2 * float(note[1]) * 1.1e-4**0.5
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), slope, rtol=0.1, atol=0.1 * float(slope.abs().max()))


@pytest.mark.parametrize("wanted", ["x", "parameters"])
def test_gradients_are_the_hosts(wanted: str) -> None:
    problem, x = build("nested"), further_points()
    x.requires_grad_(wanted == "x")
    asked = [x] if wanted == "x" else list(problem.model.covar_module.parameters())

    def gradients() -> list[list[Tensor]]:
        found = problem.predict(x)
        weights = torch.linspace(-1, 1, T, dtype=x.dtype)
        sums = (found.mean * weights).sum(), (found.variance * weights).sum()
        return [list(torch.autograd.grad(s, asked, retain_graph=True, allow_unused=True)) for s in sums]

    expected = gradients()
    with settings.rangeformer():
        found = gradients()
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert relative(one, other) < 1e-6


def test_what_users_do_with_a_posterior() -> None:
    problem, x = build("ard"), further_points()
    y = torch.sin(5 * x[:, 0])
    host = by_host(problem, x)
    with torch.no_grad():
        expected_density = problem.likelihood(host).log_prob(y)
    with served():
        found = problem.predict(x)
        observed = problem.likelihood(found)
        assert relative(observed.variance, host.variance + noise_of(problem)) < 1e-8
        assert relative(observed.log_prob(y), expected_density) < 1e-3  # a log determinant from probes
        low, high = found.confidence_region()
        assert relative(high - low, 4 * host.stddev) < 1e-8
        part = found[10:20]
        assert relative(part.variance, host.variance[10:20]) < 1e-8
        assert relative(part.covariance_matrix, host.covariance_matrix[10:20, 10:20]) < 1e-8
        assert found.rsample(torch.Size([3])).shape == (3, T)
        assert relative(found.lazy_covariance_matrix @ y, host.covariance_matrix @ y) < 1e-8
        assert relative(found.lazy_covariance_matrix[3, 5], host.covariance_matrix[3, 5]) < 1e-8
        shifted = found + 1.0
        assert relative(shifted.variance, host.variance) < 1e-8
        again = pickle.loads(pickle.dumps(found.lazy_covariance_matrix))
        assert relative(again.to_dense(), host.covariance_matrix) < 1e-8
        assert relative(copy.deepcopy(found).variance, host.variance) < 1e-8
        with gpytorch.settings.skip_posterior_variances():
            assert relative(problem.model(x).mean, host.mean) < 1e-9
        with gpytorch.settings.fast_pred_var():
            assert relative(problem.model(x).variance, host.variance) < 1e-8


def test_samples_have_the_posteriors_moments() -> None:
    problem, x = build("ard"), further_points()
    host = by_host(problem, x)
    with served():
        samples = problem.predict(x).rsample(torch.Size([1000]))
    off = (samples.mean(0) - host.mean) / (host.stddev / math.sqrt(1000))
    assert off.abs().max() < 5.5
    assert ((samples.var(0) / host.variance - 1).abs() < 5.5 * math.sqrt(2 / 1000) + 1e-3).all()


def test_no_matrix_of_test_points_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x = build("ard"), further_points(20_000)

    def refuse(self: Any) -> Any:
        raise AssertionError("a matrix of test points was evaluated")

    monkeypatch.setattr(predictions.PutOff, "evaluate_kernel", refuse)
    with served():
        found = problem.predict(x)
        assert found.variance.shape == found.mean.shape == (20_000,)
        assert (found.variance >= 0).all()


def test_points_of_training_and_points_far_away() -> None:
    problem = build("ard", n=500)
    x = torch.cat([problem.x, further_points(50), torch.full((2, DIM), 1e5, dtype=torch.float64)])
    expected = by_host(problem, x)
    for context in (served, estimated):
        with context():
            found = problem.predict(x)
            whole = expected.variance + noise_of(problem)
            assert ((found.variance - expected.variance).abs() <= 0.3 * whole).all()
            assert relative(found.variance[-2:], expected.variance[-2:]) < 1e-6
            assert ((found.mean - expected.mean).abs() <= 0.02 * whole.sqrt()).all()


def test_duplicates_and_little_noise() -> None:
    problem = build("matern32", n=500)
    problem.x[250:] = problem.x[:250]
    problem.model.set_train_data(problem.x, problem.y, strict=False)
    problem.likelihood.noise_covar.register_constraint("raw_noise", gpytorch.constraints.GreaterThan(1e-8))
    problem.likelihood.noise = 1e-5
    x = further_points()
    expected = by_host(problem, x)
    with estimated() as reports:
        found = problem.predict(x)
        off = (found.variance - expected.variance).abs() / (expected.variance + 1e-5)
        assert off.max() < 0.3
        assert reports[-1].variance_error is not None
        assert off.square().mean().sqrt() < 2.5 * reports[-1].variance_error + 1e-4


def test_nan_among_test_points_stays_where_it_is() -> None:
    problem, x = build("ard", n=500), further_points()
    x[7], x[9, 1] = math.nan, math.inf
    lost = [7, 9]
    clean = ~torch.isin(torch.arange(T), torch.tensor(lost))
    for context in (served, estimated):
        with context():
            found = problem.predict(x)
            assert torch.isfinite(found.mean[clean]).all()
            assert found.mean[lost].isnan().all()
            assert found.variance[lost].isnan().all()
            assert torch.isfinite(found.variance[clean]).all()


def test_a_kernel_that_the_model_itself_evaluates() -> None:
    """While GPyTorch's evaluation of the test points is put off, the user's own is not."""

    class Evaluating(type(build().model)):
        def forward(self, x: Tensor) -> Any:
            dense = self.covar_module(x).to_dense()
            assert isinstance(dense, Tensor)
            prior = self.covar_module(x).evaluate_kernel() if len(x) > 1000 else self.covar_module(x)
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), prior)

    problem, x = build("ard"), further_points(1200)
    model = Evaluating(problem.x, problem.y, problem.likelihood, problem.model.mean_module, problem.model.covar_module)
    expected = by_host(problem, x)
    model.eval()
    with served():
        found = model(x)
        assert relative(found.mean, expected.mean) < 1e-6
        assert relative(found.variance, expected.variance) < 1e-6


@pytest.mark.parametrize("kernel", ["spectral_mixture", "linear_plus_rbf"])
def test_other_kernels_are_the_hosts(kernel: str) -> None:
    problem, x = build(kernel), further_points()
    expected = by_host(problem, x)
    with served():
        found = problem.predict(x)
        assert not isinstance(found.lazy_covariance_matrix, PredictiveCovarianceOperator)
        assert relative(found.mean, expected.mean) < 1e-6
        assert relative(found.variance, expected.variance) < 1e-6


def test_batches_are_the_hosts() -> None:
    problem = build("ard", batch=(2,))
    x = further_points().expand(2, T, DIM)
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10**5):
        expected = problem.predict(x)
    with served():
        found = problem.predict(x)
        assert relative(found.mean, expected.mean) < 1e-6
        assert relative(found.variance, expected.variance) < 1e-6


def test_arguments() -> None:
    with pytest.raises(ValueError, match="variances"):
        Certified(variances="guessed")  # type: ignore[arg-type]
