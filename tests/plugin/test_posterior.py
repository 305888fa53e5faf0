"""Predictions of single models at many points: what is served unevaluated, against GPyTorch's own in float64."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import pickle
import re
import warnings
from collections.abc import Iterator
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

import gp_rangeformer
from gp_rangeformer import Certified, Exact, FallbackWarning, clear_memory, collect_reports, memory_bytes, settings
from gp_rangeformer.plugin import fitted, predictions
from gp_rangeformer.plugin.posterior import StaleModelError
from gp_rangeformer.plugin.predictive_covariance import PredictiveCovarianceOperator
from gp_rangeformer.report import ReportCollection
from gp_rangeformer.solvers.estimated_variances import EstimatedVariances
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import DIM, KERNELS, LIKELIHOODS, MEANS, Problem, build, relative

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

T = 600  # with any n here more than GPyTorch evaluates eagerly
FUSED = sorted(KERNELS.keys() - {"spectral_mixture", "linear_plus_rbf"})


@pytest.fixture(autouse=True)
def nothing_is_known() -> Iterator[None]:
    gp_rangeformer.clear_memory()
    yield
    gp_rangeformer.clear_memory()


def further_points(t: int = T, dtype: torch.dtype = torch.float64, spread: float = 1.2) -> Tensor:
    return (spread * torch.rand(t, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).to(dtype)


@contextlib.contextmanager
def served(**solver: Any) -> Iterator[ReportCollection]:
    with torch.no_grad(), settings.rangeformer(), settings.solver(**solver), collect_reports() as reports:
        yield reports


@contextlib.contextmanager
def estimated(n: int = 100, **solver: Any) -> Iterator[ReportCollection]:
    """With few landmarks and many iterations' worth of work left."""
    with settings.min_size(n), served(variances="estimated", rank=20, neighbours=16, **solver) as reports:
        yield reports


def by_host(problem: Problem, x: Tensor) -> Any:
    """In float64, by Cholesky."""
    problem = copy.deepcopy(problem)
    problem.model.double()
    problem.model.set_train_data(problem.x.double(), problem.y.double(), strict=False)
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10**5):
        return problem.predict(x.double())


def noise_of(problem: Problem) -> float:
    return float(problem.likelihood.noise.detach().min())


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


def test_a_second_call_costs_no_solve() -> None:
    problem, x = build("ard", n=500), further_points()
    with estimated() as reports:
        first = problem.predict(x).variance
        again = problem.model(x).variance
        other = problem.model(x[:550] + 0.1)
        assert torch.isfinite(other.variance).all()
    assert torch.equal(first, again)
    assert [report.operation for report in reports] == ["solve", *["predictive_variance"] * 3]
    assert [report.passes for report in reports][2:] == [0, 0]


def test_nothing_is_kept_beyond_the_memory_limit() -> None:
    problem, x = build("ard", n=500), further_points()
    with settings.memory_limit(0), served() as reports:
        problem.predict(x).variance  # noqa: B018
        problem.model(x).variance  # noqa: B018
    assert len(fitted._fitted) == 0
    assert [report.operation for report in reports].count("solve") == 2


def test_what_is_kept_goes_with_its_model() -> None:
    clear_memory()
    problem, x = build("ard", n=500), further_points()
    with served():
        problem.predict(x)
    assert len(fitted._fitted) == 1
    factor = 500 * 500 * 8
    assert factor <= memory_bytes() <= 1.1 * factor
    problem.model.train()
    assert len(fitted._fitted) == 0
    assert memory_bytes() < factor


def test_predictions_and_what_training_remembers_share_one_limit() -> None:
    clear_memory()
    trained, problem, x = build("ard", n=400), build("ard", n=500), further_points()
    with settings.rangeformer(), settings.min_size(100), settings.exact_size(100):
        trained.loss_and_gradient()
    remembered = memory_bytes()
    with served():
        problem.predict(x)
        both = memory_bytes()
        assert 0 < remembered < both
        with settings.memory_limit(both - 1):
            problem.predict(x)
            assert memory_bytes() == remembered + 500 * 8, "a solution without its factor"
        with settings.memory_limit(remembered):
            problem.predict(x)
    assert memory_bytes() == remembered


def test_a_model_whose_factor_is_not_kept_keeps_its_solution_and_says_so() -> None:
    problem, x = build("ard", n=500), further_points()
    with settings.memory_limit(500 * 500 * 4), served() as reports:
        first = problem.predict(x)
        mean, variance = first.mean, first.variance
        again = problem.model(x)
        assert torch.equal(again.mean, mean)
        assert torch.equal(again.variance, variance)
    assert [report.operation for report in reports] == ["solve", "predictive_variance", "predictive_variance"]
    assert ["settings.memory_limit" in " ".join(report.notes) for report in reports] == [False, True, True]


def test_given_noise_that_changes_is_noticed() -> None:
    problem, x = build("ard", "fixed", n=300), further_points()
    with served():
        problem.predict(x).variance  # noqa: B018
        problem.likelihood.noise_covar.noise.fill_(0.5)
        variance = problem.model(x).variance
        fresh = problem.predict(x).variance
    assert torch.equal(variance, fresh)


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


@pytest.mark.parametrize("changed", ["kernel", "noise", "targets", "solver"])
def test_changes_in_eval_mode_are_noticed(changed: str) -> None:
    """GPyTorch keeps the mean's solution of the former model."""
    problem, x = build("ard"), further_points()
    with served() as reports:
        problem.predict(x).variance  # noqa: B018
        solver = settings.solver.value()
        if changed == "kernel":
            problem.model.covar_module.base_kernel.raw_lengthscale += 0.5
        elif changed == "noise":
            problem.likelihood.noise_covar.raw_noise += 0.5
        elif changed == "targets":
            problem.model.train_targets.mul_(2)
        else:
            solver = Exact()
        with settings.solver(solver):
            found = problem.model(x)
            mean, variance = found.mean, found.variance
            fresh = problem.predict(x)
    assert torch.equal(mean, fresh.mean)
    assert torch.equal(variance, fresh.variance)
    assert [report.operation for report in reports].count("solve") == 3


def test_a_prediction_belongs_to_the_model_that_made_it() -> None:
    problem, x = build("ard", n=500), further_points()
    expected = by_host(problem, x).variance
    with settings.min_size(100), served(variances="estimated", rank=20) as reports:
        found = problem.predict(x)
        for parameter in problem.model.parameters():
            parameter += 0.3
        variance = found.variance
        with pytest.raises(StaleModelError, match="predict again"):
            found.covariance_matrix  # noqa: B018
    stated = reports[-1].variance_error
    assert stated is not None
    assert ((variance - expected) / (expected + noise_of(problem))).abs().max() < 30 * stated


def test_variances_may_be_read_after_the_flags_context() -> None:
    problem, x = build("ard"), further_points()
    with served() as reports:
        found = problem.predict(x)
    with collect_reports() as later:
        variance = found.variance
    assert relative(variance, by_host(problem, x).variance) < 1e-8
    assert not variance.requires_grad
    assert [report.operation for report in (*reports, *later)] == ["solve", "predictive_variance"]


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


@pytest.mark.parametrize("likelihood", ["gaussian", "heteroscedastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fantasies_start_from_what_is_known(likelihood: str, dtype: torch.dtype) -> None:
    """Twice in a row: nothing is solved before they are asked, then no more than from zero, and nothing is
    factorised."""
    problem, x = build("ard", likelihood, n=520, dtype=dtype), further_points(dtype=dtype)
    new_x, new_y = further_points(9, dtype), torch.linspace(-1, 1, 9, dtype=dtype)
    noise = {} if likelihood == "gaussian" else {"noise": torch.full((9,), 0.07, dtype=dtype)}
    wide = {name: value.double() for name, value in noise.items()}
    host = copy.deepcopy(problem)
    by_host(host, x)
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10**5):
        double = Problem(host.model.double(), host.x.double(), host.y.double(), x.double())
        double.model.set_train_data(double.x, double.y, strict=False)
        if likelihood != "gaussian":
            double.likelihood.noise_covar.noise = problem.likelihood.noise_covar.noise.double()
        double.predict(x.double())
        once = double.model.get_fantasy_model(new_x.double(), new_y.double(), **wide)
        once(x.double())
        expected = once.get_fantasy_model(new_x.double() + 0.1, new_y.double() - 1, **wide)(x.double())
        wanted, wanted_variance = expected.mean, expected.variance
    with settings.min_size(100), served(variances="estimated", rank=20, neighbours=16) as reports:
        problem.predict(x)
        first = problem.model.get_fantasy_model(new_x, new_y, **noise)
        assert len(reports) == 1
        first(x)
        second = first.get_fantasy_model(new_x + 0.1, new_y - 1, **noise)
        found = second(x)
        variance = found.variance
        fresh, *others = list(reports)
        assert [report.operation for report in others] == ["solve", "solve", "predictive_variance"]
    whole = wanted_variance + noise_of(problem)
    assert ((found.mean - wanted).abs() <= 0.02 * whole.sqrt()).all()
    assert ((variance - wanted_variance).abs() <= 0.3 * whole).all()
    assert all(report.iterations <= fresh.iterations for report in others[:2])
    assert all(report.solver == "rangeformer" for report in others[:2])
    assert all(report.mean_error is not None and report.mean_error <= 0.01 for report in others[:2])


def test_appended_rows_are_new_data() -> None:
    problem, x = build("ard", n=300), further_points()
    with served():
        problem.predict(x)
        more = further_points(20)
        longer = torch.cat([problem.x, more]), torch.cat([problem.y, more.sum(1)])
        problem.model.set_train_data(*longer, strict=False)
        found = problem.model(x)
        mean, variance = found.mean, found.variance
    changed = Problem(problem.model, *longer, x)
    expected = by_host(changed, x)
    assert relative(mean, expected.mean) < 1e-8
    assert relative(variance, expected.variance) < 1e-8
