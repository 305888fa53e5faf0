"""Leave-one-out against brute force: n conditional distributions of a dense float64 matrix."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

import gp_rangeformer
from gp_rangeformer import Exact, predict, settings
from tests.plugin.market import KERNELS, LIKELIHOODS, Problem, build

module = importlib.import_module("gp_rangeformer.predict.leave_one_out")  # whose name is its function's


def left_out(problem: Problem) -> tuple[Tensor, Tensor]:
    """Means and variances, one row and column after the other removed."""
    model = problem.model
    model.eval()
    with torch.no_grad(), gpytorch.settings.prior_mode(), gpytorch.settings.max_cholesky_size(10**4):
        prior = model(problem.x)
        a = model.likelihood(prior, [problem.x]).covariance_matrix.double().detach()
        m = prior.mean.double().detach()
    y, n = problem.y.double(), len(problem.y)
    means, variances = [], []
    for i in range(n):
        others = torch.arange(n) != i
        weights = torch.linalg.solve(a[others][:, others], a[others, i])
        means.append(m[i] + weights @ (y - m)[others])
        variances.append(a[i, i] - weights @ a[others, i])
    return torch.stack(means), torch.stack(variances)


@pytest.mark.parametrize("kernel", ["ard", "nested", "linear_plus_rbf"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_equals_brute_force(kernel: str, likelihood: str) -> None:
    problem = build(kernel, likelihood, n=110)
    mean, variance = left_out(problem)
    problem.model.train()
    found = predict.leave_one_out(problem.model)
    assert problem.model.training
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance, variance, rtol=1e-6, atol=0)
    normal = torch.distributions.Normal(mean, variance.sqrt())
    torch.testing.assert_close(found.log_density, normal.log_prob(problem.y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pit, normal.cdf(problem.y), rtol=1e-5, atol=1e-5)
    assert found.score == pytest.approx(float(normal.log_prob(problem.y).mean()), abs=1e-6)
    assert found.rmse == pytest.approx(float((mean - problem.y).square().mean().sqrt()), rel=1e-6)
    assert found.variance_error == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["matern12", "ard", "sum"])
def test_estimates_are_as_near_as_they_say(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a factorisation would take long; landmarks, which are conditioned in another way, included."""
    monkeypatch.setattr(module, "_MULTIPLICATIONS", 0)
    monkeypatch.setattr("gp_rangeformer.plugin.fitted._FACTORISED", 0)
    problem = build(kernel, n=400, dtype=dtype)
    mean, variance = left_out(problem)
    with settings.min_size(100), settings.solver(rank=20, neighbours=16):
        found = predict.leave_one_out(problem.model)
    off = found.variance / variance - 1
    stated = found.variance_error
    assert 0 < stated <= 0.02
    exact = torch.distributions.Normal(mean, variance.sqrt()).log_prob(problem.y.double()).mean()
    assert abs(found.score - float(exact)) < 2 * found.score_error
    assert off.abs().max() < 30 * stated
    assert 0.4 * stated < off.square().mean().sqrt() < 2.5 * stated
    room = 30 * stated * (problem.y - mean).abs() + 0.01 * variance.sqrt()
    assert ((found.mean - mean).abs() <= room).all()


def test_coincident_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than neighbours are looked for: a point is never given itself."""
    monkeypatch.setattr(module, "_MULTIPLICATIONS", 0)
    monkeypatch.setattr("gp_rangeformer.plugin.fitted._FACTORISED", 0)
    problem = build("ard", n=400)
    problem.x[:300] = problem.x[0]
    problem.model.set_train_data(problem.x, problem.y, strict=False)
    _, variance = left_out(problem)
    with settings.min_size(100), settings.solver(rank=20, neighbours=16):
        found = predict.leave_one_out(problem.model)
    assert (found.variance / variance - 1).abs().max() < 0.2


def test_a_matrix_that_is_nearly_singular_has_the_hosts_jitter() -> None:
    """Noise far below the rounding of a kernel of low rank."""
    problem = build("ard", n=30)
    problem.model.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.LinearKernel()).double()
    problem.model.covar_module.outputscale = 1e8
    problem.model.likelihood.noise_covar.register_constraint("raw_noise", gpytorch.constraints.Positive())
    problem.model.likelihood.noise = 1e-9
    with pytest.warns(NumericalWarning, match="added jitter"):
        found = predict.leave_one_out(problem.model)
    assert found.variance.isfinite().all()


def test_a_calibrated_model_is_found_to_be_one() -> None:
    """Targets drawn from the model itself."""
    problem = build("ard", n=600)
    problem.model.eval()
    with torch.no_grad(), gpytorch.settings.prior_mode():
        prior = problem.likelihood(problem.model(problem.x))
    factor = torch.linalg.cholesky(prior.covariance_matrix.detach())
    unit = torch.randn(600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem.model.set_train_data(problem.x, (prior.mean + factor @ unit).detach(), strict=False)
    found = predict.leave_one_out(problem.model)
    for one in found.coverage:
        assert abs(one.share - one.level) < 4 * one.deviation
        assert one.deviation == pytest.approx(math.sqrt(one.level * (1 - one.level) / 600))
    assert "inside 95%" in found.summary()
    problem.model.set_train_data(problem.x, 3 * problem.model.train_targets, strict=False)
    wrong = predict.leave_one_out(problem.model)
    assert wrong.score < found.score - 1
    assert wrong.coverage[2].share < 0.9


@pytest.mark.usefixtures("predicts_small_systems")
def test_a_mean_that_changes_is_noticed() -> None:
    problem = build("ard", n=200)
    x = torch.rand(700, 3, dtype=torch.float64)
    with torch.no_grad(), settings.rangeformer():
        problem.predict(x)
        problem.model.mean_module.raw_constant.fill_(4.0)
        found = predict.leave_one_out(problem.model)
        paths = predict.sample_paths(problem.model, 3)(x)
    problem.model.train()
    torch.testing.assert_close(found.mean, predict.leave_one_out(problem.model).mean)
    torch.testing.assert_close(paths, predict.sample_paths(problem.model, 3)(x))


@pytest.mark.usefixtures("predicts_small_systems")
def test_a_models_own_solution_is_used() -> None:
    problem = build("ard", n=200)
    gp_rangeformer.clear_memory()
    x = torch.rand(700, 3, dtype=torch.float64)
    with torch.no_grad(), settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
        problem.predict(x)
        problem.model.prediction_strategy  # noqa: B018
        predict.leave_one_out(problem.model)
    assert [report.operation for report in reports] == ["solve"]


def test_the_exact_solver_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MULTIPLICATIONS", 0)
    problem = build("ard", n=300)
    _, variance = left_out(problem)
    for solver in ({"chosen": Exact()}, {"variances": "certified"}):
        with settings.min_size(100), settings.solver(**solver):
            found = predict.leave_one_out(problem.model)
        torch.testing.assert_close(found.variance, variance, rtol=1e-6, atol=0)


def of_several_outputs() -> Any:
    return build("ard", batch=(2,)).model


def without_data() -> Any:
    model = build().model
    model.train_inputs = model.train_targets = None
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [(of_several_outputs, "batch"), (without_data, "set_train_data"), (lambda: torch.nn.Linear(2, 1), "ExactGP")],
)
def test_what_is_not_covered(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.leave_one_out(make())


def test_every_recognised_kernel() -> None:
    for kernel in sorted(KERNELS):
        problem = build(kernel, n=101)
        _, variance = left_out(problem)
        torch.testing.assert_close(predict.leave_one_out(problem.model).variance, variance, rtol=1e-5, atol=0)
