"""Predictive means, variances and covariances, and their gradients, against the host's Cholesky."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.predictive_means import mean_solve
from gp_rangeformer.system.answers import Solution
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import (
    KERNELS,
    LIKELIHOODS,
    RANK,
    Problem,
    build,
    data,
    exact_path,
    rangeformer_path,
    relative,
)
from tests.system.systems import kernel_matrix, points, system, targets

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

PATHS = {"exact": exact_path, "rangeformer": rangeformer_path}
paths = pytest.mark.parametrize("path", PATHS)
love = pytest.mark.parametrize("fast_pred_var", [False, True], ids=["solve", "love"])
detach = pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
batches = pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])


@contextlib.contextmanager
def prediction_mode(fast_pred_var: bool, detach: bool = True) -> Iterator[None]:
    with gpytorch.settings.fast_pred_var(fast_pred_var), gpytorch.settings.detach_test_caches(detach):
        yield


def check_prediction(problem: Problem, path: str, fast_pred_var: bool, detach: bool = True) -> None:
    with prediction_mode(fast_pred_var, detach):
        expected = problem.predict()
        mean, covariance = expected.mean, expected.covariance_matrix
        with PATHS[path]() as reports:
            found = problem.predict()
            found_covariance = found.covariance_matrix
    assert relative(found.mean, mean) < 1e-5
    assert relative(found_covariance, covariance) < 1e-5
    torch.testing.assert_close(found_covariance, found_covariance.mT, rtol=0, atol=1e-9)
    assert (found_covariance.diagonal(dim1=-1, dim2=-2) > 0).all()
    solvers = {report.operation: (report.solver, report.reason) for report in reports}
    assert solvers.keys() <= {"solve", "root_inv_decomposition"}
    wanted = ("exact", Reason.EXACT_SMALL) if path == "exact" else ("rangeformer", Reason.CONVERGED)
    assert solvers["solve"] == wanted
    if fast_pred_var and detach:
        solver, reason = solvers["root_inv_decomposition"]
        assert solver == "exact"
        assert reason in (Reason.EXACT_SMALL, Reason.EXACT_LOW_RANK, Reason.EXACT_ROOT)
    elif fast_pred_var:
        assert solvers["root_inv_decomposition"] == ("gpytorch", Reason.ROOT_GRADIENT)


@paths
@love
@detach
@batches
def test_predictions_equal_the_hosts(path: str, fast_pred_var: bool, detach: bool, batch: tuple[int, ...]) -> None:
    check_prediction(build(n=200, batch=batch), path, fast_pred_var, detach)


@paths
@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "matern32"])
def test_every_kernel_predicts(kernel: str, path: str) -> None:
    check_prediction(build(kernel, n=200), path, fast_pred_var=False)


@pytest.mark.filterwarnings("ignore:You have passed data through a FixedNoiseGaussianLikelihood")
@paths
@love
@batches
@pytest.mark.parametrize("likelihood", [name for name in LIKELIHOODS if name != "gaussian"])
def test_every_likelihood_predicts(likelihood: str, path: str, fast_pred_var: bool, batch: tuple[int, ...]) -> None:
    check_prediction(build(likelihood=likelihood, n=200, batch=batch), path, fast_pred_var)


@paths
@love
@detach
def test_gradients_with_respect_to_test_inputs_are_the_hosts(path: str, fast_pred_var: bool, detach: bool) -> None:
    problem = build(n=200)

    def gradients() -> tuple[torch.Tensor, torch.Tensor]:
        test_x = problem.test_x.clone().requires_grad_()
        prediction = problem.predict(test_x)
        return (
            torch.autograd.grad(prediction.mean.sum(), test_x, retain_graph=True)[0],
            torch.autograd.grad(prediction.variance.sum(), test_x)[0],
        )

    with prediction_mode(fast_pred_var, detach):
        expected = gradients()
        with PATHS[path]() as reports:
            found = gradients()
    assert {"exact": "exact", "rangeformer": "rangeformer"}[path] in {report.solver for report in reports}
    for ours, host in zip(found, expected, strict=True):
        assert relative(ours, host) < 1e-5


@paths
@love
@pytest.mark.parametrize("quantity", ["mean", "variance"])
def test_gradients_with_respect_to_hyperparameters_are_the_hosts(path: str, fast_pred_var: bool, quantity: str) -> None:
    problem = build(n=200)
    parameters = [p for name, p in problem.model.named_parameters() if quantity == "mean" or "mean" not in name]

    def gradient() -> torch.Tensor:
        prediction = problem.predict()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(getattr(prediction, quantity).sum(), parameters)])

    with prediction_mode(fast_pred_var, detach=False):
        expected = gradient()
        with PATHS[path]() as reports:
            found = gradient()
    assert len(reports) >= 2
    assert relative(found, expected) < 1e-4


def test_leaving_eval_mode_clears_what_the_flag_computed() -> None:
    problem = build(n=200)
    with rangeformer_path(), gpytorch.settings.fast_pred_var():
        first = problem.predict().mean
        problem.likelihood.noise = 0.5
        second = problem.predict().mean  # calls train() and eval()
    with gpytorch.settings.fast_pred_var():
        expected = problem.predict().mean
    assert relative(second, expected) < 1e-5
    assert relative(first, expected) > 1e-3


def test_a_low_rank_root_only_ever_overestimates_the_variance() -> None:
    problem = build("rbf", n=300)
    problem.likelihood.noise = 0.2
    test_x = torch.rand(200, 3, dtype=torch.float64)
    with torch.no_grad(), gpytorch.settings.fast_pred_var():
        exact = problem.predict(test_x).variance
        with rangeformer_path(tolerance=0.01, rank=100) as reports:
            found = problem.predict(test_x).variance
    report = next(report for report in reports if report.operation == "root_inv_decomposition")
    assert (report.solver, report.reason) == ("rangeformer", Reason.CONVERGED)
    assert report.variance_error is not None
    assert 0 < report.variance_error <= 0.01
    excess = (found - exact) / (exact + 0.2)
    assert excess.min() > -1e-10
    assert excess.max() < 0.03


def test_a_root_as_wide_as_the_matrix_is_not_taken_for_a_triangular_one() -> None:
    """With rank >= n the proposal spans everything: the root is square, but not triangular as fantasies need it."""
    problem = build("matern12", n=150)
    problem.likelihood.noise = 0.01
    fantasy_x, fantasy_y = problem.test_x, torch.zeros(len(problem.test_x), dtype=torch.float64)

    def fantasise() -> Any:
        problem.predict()
        return problem.model.get_fantasy_model(fantasy_x, fantasy_y)(problem.test_x + 0.1)

    with torch.no_grad(), gpytorch.settings.fast_pred_var():
        expected = fantasise()
        with rangeformer_path(tolerance=0.01, rank=150) as reports:
            found = fantasise()
    report = next(report for report in reports if report.operation == "root_inv_decomposition")
    assert report.solver == "rangeformer"
    assert relative(found.mean, expected.mean) < 0.01
    assert relative(found.variance, expected.variance) < 0.01


@pytest.mark.filterwarnings("ignore::gp_rangeformer.FallbackWarning")  # float32 at this noise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("seed", "kernel", "noise"),
    [(seed, *case) for seed, case in enumerate(itertools.product(["rbf", "matern32", "matern12"], [1e-3, 1e-2]))],
)
@love
def test_variances_are_never_negative_and_covariances_symmetric_at_default_tolerance(
    fast_pred_var: bool, seed: int, kernel: str, noise: float, dtype: torch.dtype
) -> None:
    """At training inputs with little noise the variance is a small difference of large numbers."""
    problem = build(kernel, n=330, dtype=dtype, seed=seed)
    problem.likelihood.noise = noise
    near = problem.x[:10] + 1e-3
    with (
        prediction_mode(fast_pred_var),
        rangeformer_path(tolerance=0.01) as reports,
        settings.solver(prediction_tolerance=1e-3),
        torch.no_grad(),
    ):
        problem.loss()  # leaves a memory behind, as training does
        covariances = [problem.predict(near[:m]).covariance_matrix for m in (1, 2, 10)]
    with prediction_mode(fast_pred_var), torch.no_grad():
        variance = problem.predict(near).variance
    assert "rangeformer" in {report.solver for report in reports}
    for covariance in covariances:
        scale = float(variance[: len(covariance)].max()) + noise
        assert float((covariance - covariance.mT).abs().max()) < 0.01 * scale
        assert float(covariance.diagonal().min()) > 0


@paths
def test_the_joint_predictive_density_of_test_targets_is_the_hosts(path: str) -> None:
    """The posterior covariance plus noise is a system of its own, of no kernel's origin."""
    problem = build(n=200)
    test_x, test_y, _ = data(120, seed=8)

    def log_density() -> torch.Tensor:
        return problem.likelihood(problem.predict(test_x)).log_prob(test_y)

    expected = log_density()
    with PATHS[path]() as reports:
        found = log_density()
    report = reports[-1]
    assert (report.operation, report.solver, report.n) == ("inv_quad_logdet", path, 120)
    if path == "exact":
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    else:
        assert report.mll_statistical is not None
        assert abs(found.item() - expected.item()) < 0.75 * report.mll_statistical.width
        assert report.mll_statistical.width < 0.1 * 120


@pytest.mark.parametrize("seed", [5, 6, 7, 8])
def test_a_predictive_mean_is_refined_beyond_the_residual_that_was_asked_for(seed) -> None:
    """Next to little noise a relative residual of 1e-3 leaves errors of a per cent of the standard deviation; refined
    they were 2.7e-4 to 6.4e-4 of it over eight seeds and two ways to round."""
    kernel = kernel_matrix(points(600, 4, seed=seed), lengthscale=2.0)
    train, test = kernel[:500, :500], kernel[500:, :500]
    noise = 1e-3
    factor = torch.linalg.cholesky(train + noise * torch.eye(500, dtype=torch.float64))
    y = factor @ targets(500)
    exact = test @ torch.cholesky_solve(y, factor)
    explained = torch.linalg.solve_triangular(factor, test.mT, upper=False).square().sum(0)
    deviation = (1 + noise - explained).sqrt()

    def largest_error(solve: Callable[[CertifiedPrepared, Tensor], Solution]) -> float:
        prepared = Certified(tolerance=1e-3, rank=RANK).prepare(system(train, noise))
        solution = solve(prepared, y)
        assert solution.converged
        assert float(solution.residual.max()) <= 1e-3
        return float(((test @ solution.value - exact).squeeze(-1).abs() / deviation).max())

    assert largest_error(CertifiedPrepared.solve) > 2e-3
    assert largest_error(mean_solve) < 1e-3
