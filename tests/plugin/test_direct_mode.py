"""settings.solver(Direct()): the network's answers reach GPyTorch uncorrected, and nobody can overlook it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import gpytorch
import pytest
import torch
from linear_operator.utils.errors import NanError

from gp_rangeformer import OutsideToleranceWarning, settings
from gp_rangeformer.rangeformer import answer as network
from gp_rangeformer.rangeformer.answer import Answer
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import added_diagonal, build, dense_covariance, exact_path, rangeformer_path


def direct(**changes: Any) -> settings.solver:
    """The network answers, with probes and tolerances of the present solver but for ``changes``."""
    return settings.solver(Direct(replace(settings.solver.value(), **changes)))


def test_the_certified_mode_never_asks_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Answer:
        raise AssertionError("asked")

    monkeypatch.setattr(network, "answer", refuse)
    with rangeformer_path():
        build().loss().backward()
    with (
        rangeformer_path(),
        direct(),
        pytest.raises(AssertionError, match="asked"),
    ):
        build().loss()


def test_the_value_is_the_networks_own_and_its_distance_from_the_truth_is_reported() -> None:
    problem = build("rbf", n=300)
    with (
        rangeformer_path(tolerance=0.01) as reports,
        direct(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", OutsideToleranceWarning)
        value = -300 * problem.loss().item()
        solver = settings.solver.value()
    (report,) = reports
    assert report.solver == "direct"
    assert report.mll == pytest.approx(value, rel=1e-6)
    mean, covariance = dense_covariance(problem)
    exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(problem.y).item()
    assert report.mll_interval is not None
    assert report.mll_interval.contains(exact)
    assert value != pytest.approx(exact, rel=1e-9)
    with torch.no_grad():
        system = LinearSystem(covariance - 0.05 * torch.eye(300).double(), torch.full((300,), 0.05).double())
        probes = solver.certified.probe_vectors(system)
        rhs = torch.cat([(problem.y - mean).unsqueeze(-1).detach(), probes], dim=1)
        answer = solver.ask(system, rhs, probes.shape[1])
    assert report.logdet == pytest.approx(answer.logdet, rel=1e-6)


def test_an_answer_outside_tolerance_warns_and_names_the_way_back() -> None:
    expected = pytest.warns(OutsideToleranceWarning, match=r"settings\.solver\(Certified\(\)\)")
    few = settings.solver(Direct(settings.solver.value(), columns=40))
    with rangeformer_path() as reports, few, expected:
        build("matern12", n=200).loss()
    assert reports[0].reason is Reason.DIRECT
    assert reports[0].residual > 0.01
    assert not reports[0].fell_back


@pytest.mark.filterwarnings("ignore::gp_rangeformer.OutsideToleranceWarning")
def test_training_and_prediction_run_through() -> None:
    problem = build("rbf", n=200)
    with rangeformer_path() as reports, direct():
        _, gradient = problem.loss_and_gradient()
        prediction = problem.predict().mean
        with gpytorch.settings.fast_pred_var():
            variance = problem.predict().variance
    assert gradient.isfinite().all()
    assert prediction.isfinite().all()
    assert (variance > 0).all()
    answered = {report.operation: report.solver for report in reports}
    assert answered["inv_quad_logdet"] == answered["solve"] == "direct"
    assert answered["root_inv_decomposition"] == "exact"


@pytest.mark.usefixtures("predicts_small_systems")
@pytest.mark.filterwarnings("ignore::gp_rangeformer.OutsideToleranceWarning")
@pytest.mark.parametrize("forward", ["direct", "rangeformer"])
def test_a_backward_solve_is_reported_by_the_name_of_who_makes_it(forward: str) -> None:
    problem = build("matern12")
    with rangeformer_path() as reports, gpytorch.settings.detach_test_caches(False):
        both = {"direct": Direct(settings.solver.value()), "rangeformer": settings.solver.value()}
        with settings.solver(both.pop(forward)):
            mean = problem.predict().mean.sum()
        before = len(reports)
        with settings.solver(*both.values()):
            mean.backward()
    assert [(report.operation, report.solver) for report in list(reports)[before:]] == [("solve", forward)]


@pytest.mark.filterwarnings("ignore::gp_rangeformer.OutsideToleranceWarning")
def test_a_gradient_that_nobody_measured_is_not_taken_for_an_exact_one() -> None:
    problem = build("rbf", n=200)
    with rangeformer_path() as reports, direct():
        problem.loss()
        with torch.no_grad():
            problem.loss()
    assert reports[0].gradient is None
    assert "the gradient is not measured" in reports[0].summary()
    assert "gradient" not in reports[1].summary()


@pytest.mark.filterwarnings("ignore::gp_rangeformer.OutsideToleranceWarning")
def test_the_mode_answers_below_min_size_and_leaves_what_is_below_exact_size() -> None:
    with exact_path() as reports, direct():
        build().loss()
    assert reports[0].solver == "direct"
    with exact_path() as reports, direct(), settings.exact_size(1000):
        build().loss()
    assert reports[0].solver == "gpytorch"


@pytest.mark.filterwarnings("ignore::gp_rangeformer.OutsideToleranceWarning")
def test_the_same_seed_gives_the_same_answer() -> None:
    problem = build(n=150)
    values = []
    for seed in (0, 0, 1):
        with rangeformer_path(), direct(seed=seed):
            values.append(problem.loss().item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_kernel_matrix_that_is_not_finite_is_an_error_here_too(bad: float) -> None:
    kernel = torch.eye(50).double()
    kernel[3, 5] = kernel[5, 3] = bad
    rhs = torch.ones(50, 1).double()
    with rangeformer_path(), direct(), pytest.raises(NanError):
        added_diagonal(kernel, 0.1).inv_quad_logdet(rhs, logdet=True)
    with rangeformer_path(), direct(), pytest.raises(NanError):
        added_diagonal(kernel, 0.1).solve(rhs)
