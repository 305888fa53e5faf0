"""Predictions from few points are left to the host, in float32 from fewer, and no others."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from linear_operator import settings as host_settings

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.plugin import crossover
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import build

SMALL, LARGE = 200, crossover.POINTS


def reasons(n: int, dtype: torch.dtype = torch.float64, noise: float | None = None) -> set[Reason]:
    """Why whoever answered a prediction with variances did."""
    problem = build(n=n, dtype=dtype)
    if noise is not None:
        problem.likelihood.noise = noise
    with settings.rangeformer(), gp_rangeformer.collect_reports() as reports, torch.no_grad():
        posterior = problem.predict()
        assert posterior.mean.isfinite().all()
        assert posterior.variance.isfinite().all()
    return {report.reason for report in reports}


@pytest.mark.parametrize("fast", [False, True])
def test_small_predictions_have_the_hosts_bits(fast: bool) -> None:
    found = []
    for flag in (False, True):
        problem = build(n=SMALL)
        with settings.rangeformer(flag), gpytorch.settings.fast_pred_var(fast), torch.no_grad():
            posterior = problem.predict()
            found.append((posterior.mean, posterior.variance))
    for host, own in zip(*found, strict=True):
        assert torch.equal(host, own)


def test_they_are_reported() -> None:
    assert reasons(SMALL) == {Reason.HOST_CHOLESKY}


def test_float32_is_left_to_the_host_where_its_overhead_would_show() -> None:
    few = crossover.NARROW - 1
    assert reasons(few, torch.float32) <= {Reason.HOST_CHOLESKY, Reason.TOO_SMALL}
    for more in (crossover.NARROW, SMALL):
        assert not reasons(more, torch.float32, noise=1e-4) & {Reason.HOST_CHOLESKY, Reason.TOO_SMALL}


@pytest.mark.parametrize(("n", "host"), [(150, True), (crossover.FEW - 1, True), (crossover.FEW, False)])
def test_it_is_up_to_a_few_more_where_float32_does(n: int, host: bool) -> None:
    assert bool(reasons(n, torch.float32, noise=0.1) & {Reason.HOST_CHOLESKY, Reason.TOO_SMALL}) is host


def test_what_float32_does_follows_the_kernel_and_the_noise() -> None:
    problem = build(n=SMALL, dtype=torch.float32)
    expected = []
    for noise in (0.1, 1e-4, 0.1):
        problem.likelihood.noise = noise
        problem.model.train()
        with settings.rangeformer(), gp_rangeformer.collect_reports() as reports, torch.no_grad():
            assert problem.predict().mean.isfinite().all()
        expected.append({report.reason for report in reports} == {Reason.HOST_CHOLESKY})
    assert expected == [True, False, True]


@pytest.mark.parametrize(("noise", "host"), [(0.1, True), (1e-3, False)])
def test_batches_in_float32_are_left_to_the_host_where_float32_does(noise: float, host: bool) -> None:
    """One by one their certificates take as long as the host's predictions, twice over."""
    problem = build(n=SMALL, batch=(4,), dtype=torch.float32)
    problem.likelihood.noise = torch.full_like(problem.likelihood.noise, noise)
    truth = build(n=SMALL, batch=(4,), dtype=torch.float64)
    truth.model.load_state_dict(problem.model.state_dict())
    with settings.rangeformer(), gp_rangeformer.collect_reports() as reports, torch.no_grad():
        mean = problem.predict().mean
    assert ({report.reason for report in reports} == {Reason.HOST_CHOLESKY}) is host
    with torch.no_grad():
        expected = truth.predict().mean
    # What a prediction is asked for, in deviations of the noise.
    allowed = settings.solver.value().prediction_error * noise**0.5
    assert float((mean.double() - expected).abs().max()) < allowed


@pytest.mark.parametrize(("n", "batch", "served"), [(50, 3, False), (20, 16, False), (50, 4, True), (100, 1, True)])
def test_batches_count_by_the_numbers_of_their_matrices(n: int, batch: int, served: bool) -> None:
    problem = build(n=n, batch=() if batch == 1 else (batch,))
    with settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
        problem.loss().backward()
    assert (Reason.TOO_SMALL not in {report.reason for report in reports}) == served


@pytest.mark.parametrize(("n", "served"), [(120, False), (199, True)])
def test_kernels_without_a_fused_form_are_left_to_the_host_up_to_twice_as_many_points(n: int, served: bool) -> None:
    problem = build("spectral_mixture", n=n)
    with settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
        problem.loss().backward()
    assert (Reason.TOO_SMALL not in {report.reason for report in reports}) == served


def test_neither_are_more_points() -> None:
    assert reasons(LARGE - 1) == {Reason.HOST_CHOLESKY}
    assert Reason.HOST_CHOLESKY not in reasons(LARGE)


def test_neither_is_what_the_host_would_answer_by_conjugate_gradients() -> None:
    with host_settings.max_cholesky_size(SMALL - 1):
        assert Reason.HOST_CHOLESKY not in reasons(SMALL)


def test_neither_is_what_the_rangeformer_solver_is_asked_for() -> None:
    with settings.min_size(SMALL):
        assert Reason.HOST_CHOLESKY not in reasons(SMALL)


def test_neither_is_a_solve_that_no_prediction_asks_for() -> None:
    problem = build(n=SMALL)
    with settings.rangeformer(), torch.no_grad():
        covariance = problem.model.likelihood(problem.model(problem.x)).lazy_covariance_matrix
        covariance.evaluate_kernel().solve(problem.y)
    report = gp_rangeformer.last_report()
    assert report is not None
    assert report.reason is Reason.EXACT_SMALL


@pytest.mark.parametrize(("noise", "host"), [(0.1, True), (1e-3, False)])
def test_repeated_gradients_in_few_points_are_left_to_it_where_float32_does(noise: float, host: bool) -> None:
    problem = build(n=500, dtype=torch.float32)
    problem.likelihood.noise = noise
    x = (problem.x[:5] + 1e-3).requires_grad_()
    with settings.rangeformer(), gpytorch.settings.fast_pred_var(), gp_rangeformer.collect_reports() as reports:
        problem.predict(x).variance.sum().backward()
    assert ({report.reason for report in reports} == {Reason.HOST_CHOLESKY}) is host
