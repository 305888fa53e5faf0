"""Predictions of models whose solves take longer than a factorisation in the dtype of K."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import gp_rangeformer
from gp_rangeformer import FallbackWarning, settings
from gp_rangeformer.plugin import fitted
from gp_rangeformer.report import ReportCollection, collect_reports
from gp_rangeformer.solvers.inverse_diagonal import InverseDiagonal, audited_inverse_diagonal
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import Problem, build
from tests.plugin.posteriors import by_host, further_points, noise_of

pytestmark = pytest.mark.usefixtures("predicts_small_systems")
N = 700
leave_one_out_module = sys.modules["gp_rangeformer.predict.leave_one_out"]  # whose name is its function's
BY_A_FACTOR = "refined by one factorisation"


@pytest.fixture(autouse=True)
def as_if_it_were_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known, and no exact answer is cheap."""
    monkeypatch.setattr(fitted, "_FACTORISED", 0)
    monkeypatch.setattr("gp_rangeformer.plugin.posterior._MULTIPLICATIONS", 0)
    monkeypatch.setattr(leave_one_out_module, "_MULTIPLICATIONS", 0)
    monkeypatch.setattr(fitted, "_TRIED", 1)
    gp_rangeformer.clear_memory()
    yield
    gp_rangeformer.clear_memory()


@contextlib.contextmanager
def flag(**solver: Any) -> Iterator[ReportCollection]:
    chosen = settings.solver(**{"rank": 20, "neighbours": 8, "neighbours_above": 0.0, **solver})
    with (
        settings.rangeformer(),
        settings.min_size(100),
        chosen,
        torch.no_grad(),
        warnings.catch_warnings(),
        collect_reports() as reports,
    ):
        warnings.simplefilter("error", FallbackWarning)
        yield reports


def predicted(dtype: torch.dtype, **solver: Any) -> tuple[Any, torch.Tensor, Any, ReportCollection]:
    problem, x = build("matern12", n=N, dtype=dtype), further_points(dtype=dtype)
    with flag(**solver) as reports:
        found = problem.predict(x)
        _ = found.variance
    return problem, x, found, reports


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_and_variances_are_as_near_as_they_say(dtype: torch.dtype) -> None:
    problem, x, found, reports = predicted(dtype)
    expected, noise = by_host(problem, x), noise_of(problem)
    solve, variances = reports
    assert (solve.operation, solve.solver, solve.reason) == ("solve", "rangeformer", Reason.CONVERGED)
    assert any(note.startswith(BY_A_FACTOR) for note in solve.notes)
    assert solve.mean_error is not None
    assert solve.mean_error <= 0.01
    whole = expected.variance + noise
    rounding = 1e-3 if dtype == torch.float32 else 0.0
    assert ((found.mean - expected.mean).abs() <= (solve.mean_error + rounding) * whole.sqrt()).all()
    assert (variances.solver, variances.reason) == ("rangeformer", Reason.CONVERGED)
    pairs = fitted._fitted[problem.model.prediction_strategy].pairs
    assert pairs is not None
    assert pairs.alike  # made by the factor
    stated = variances.variance_error
    assert stated is not None
    assert 0 < stated <= 0.01
    off = (found.variance - expected.variance) / whole
    assert off.abs().max() < 30 * stated
    assert 0.4 * stated < float(off.square().mean().sqrt()) < 2.5 * stated
    assert "off by at most" in variances.summary()


def test_easy_ones_are_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "_TRIED", 100)
    _, _, _, reports = predicted(torch.float64)
    assert reports[0].iterations > 0
    assert not any(note.startswith(BY_A_FACTOR) for note in reports[0].notes)


@pytest.mark.parametrize("missing", ["memory", "a factor"])
def test_without_a_factor_iterations_go_on(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "memory":
        monkeypatch.setattr(fitted, "exact_path_fits", lambda *arguments: False)
    else:
        monkeypatch.setattr(fitted, "factorised", lambda *arguments: None)
    problem, x, found, reports = predicted(torch.float64)
    assert reports[0].iterations > 1
    assert not any(note.startswith(BY_A_FACTOR) for note in reports[0].notes)
    expected = by_host(problem, x)
    assert ((found.mean - expected.mean).abs() <= 0.01 * (expected.variance + noise_of(problem)).sqrt()).all()


def test_larger_systems_are_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "_ENDED_BY_A_FACTOR", (N - 1) ** 3)
    _, _, _, reports = predicted(torch.float64)
    assert reports[0].iterations > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("precise", [True, False])
def test_scores_come_from_that_factor_or_from_its_draws(
    precise: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coarse(system: LinearSystem, factor: torch.Tensor) -> InverseDiagonal:
        found = audited_inverse_diagonal(system, factor)
        return replace(found, standard_error=found.value)

    if not precise:  # as if the factor had shown itself off by more than variances may be
        monkeypatch.setattr(leave_one_out_module, "audited_inverse_diagonal", coarse)
    problem, _, _, _ = predicted(dtype)
    problem.model.train()
    chosen = settings.solver(rank=20, neighbours=8, neighbours_above=0.0)
    with settings.min_size(100), chosen, collect_reports() as reports:
        scores = gp_rangeformer.predict.leave_one_out(problem.model)
    dense = problem.model.likelihood(problem.model(problem.x)).covariance_matrix.double()
    exact = 1 / torch.linalg.inv(dense.detach()).diagonal()
    assert any(note.startswith(BY_A_FACTOR) for report in reports for note in report.notes)
    off = float((scores.variance / exact - 1).square().mean().sqrt())
    assert off < 2.5 * scores.variance_error
    if precise:
        assert scores.variance_error < {torch.float32: 1e-4, torch.float64: 1e-11}[dtype]
        assert off > 0.2 * scores.variance_error
    else:
        assert 1e-4 < scores.variance_error <= 0.02


def test_fantasies_append_to_that_factor() -> None:
    problem, x, _, _ = predicted(torch.float64)
    new_x, new_y = x[:5] + 0.01, torch.linspace(-1, 1, 5, dtype=torch.float64)
    with flag() as reports:
        fantasy: Any = problem.model.get_fantasy_model(new_x, new_y)
        found = fantasy(x)
        mean, variance = found.mean, found.variance
    solve = reports[0]
    assert (solve.operation, solve.n, solve.iterations) == ("solve", N + 5, 0)
    assert any("were appended" in note for note in solve.notes)
    assert solve.mean_error is not None
    whole = Problem(fantasy, fantasy.train_inputs[0], fantasy.train_targets, x)
    expected = by_host(whole, x)
    spread = expected.variance + noise_of(problem)
    assert ((mean - expected.mean).abs() <= solve.mean_error * spread.sqrt()).all()
    stated = reports[-1].variance_error
    assert stated is not None
    assert float(((variance - expected.variance) / spread).square().mean().sqrt()) < 2.5 * stated
