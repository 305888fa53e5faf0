"""What a model's predictions keep between calls, when it is made anew, and when it is forgotten."""

from __future__ import annotations

import copy

import gpytorch
import pytest
import torch

from gp_rangeformer import Exact, clear_memory, collect_reports, memory_bytes, settings
from gp_rangeformer.plugin import fitted
from gp_rangeformer.plugin.posterior import StaleModelError
from tests.plugin.market import Problem, build, relative
from tests.plugin.posteriors import by_host, estimated, further_points, noise_of, served

pytestmark = pytest.mark.usefixtures("predicts_small_systems")


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


def test_deterministic_draws_do_not_see_a_factor_that_something_else_has_made() -> None:
    problem, columns = build("ard", n=500), torch.randn(500, 3, dtype=torch.float64)
    with estimated(), settings.deterministic(), torch.no_grad():
        problem.predict(further_points()).variance  # noqa: B018
        (kept,) = fitted._fitted.values()
        before = kept.solve_draws(columns)
        kept.factorised(kept.linear_system())
        assert torch.equal(kept.solve_draws(columns), before)
        with settings.deterministic(False):
            assert not torch.equal(kept.solve_draws(columns), before)
