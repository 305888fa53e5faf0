"""The report's gradient: right values, honest standard errors, and what is done where they are too large."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from gpytorch.kernels import PeriodicKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from torch import Tensor

from gp_rangeformer import clear_memory, collect_reports, last_report, settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin import gradient_error
from gp_rangeformer.report import GradientError, HyperparameterGradient, SolveReport
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import GP, Problem, added_diagonal, build, flat_gradient, rangeformer_path, relative, set_to

N = 150
NAMES = {
    "matern32": ["noise", "outputscale", "lengthscale"],
    "ard": ["noise", "outputscale", "lengthscale[0]", "lengthscale[1]", "lengthscale[2]"],
    "sum": ["noise", "outputscale", "lengthscale", "outputscale 2", "lengthscale 2"],
    "rational_quadratic": ["noise", "outputscale", "lengthscale", "alpha"],
}


def step(problem: Problem, **options: Any) -> SolveReport:
    """The report of one training step by the solver, whose tolerances leave the probes' error alone."""
    asked = {"num_probes": 32, "gradient_tolerance": 1e6, "seed": 0, "rank": 40, **options}
    settings_of = [set_to(name, value) for name, value in asked.items()]
    with settings.rangeformer(), settings.min_size(1), settings.solver(tolerance=1e-5), collect_reports() as reports:
        for setting in settings_of:
            setting.__enter__()
        try:
            problem.loss().backward()
        finally:
            for setting in reversed(settings_of):
                setting.__exit__(None, None, None)
    return reports[0]


def measured(report: SolveReport) -> GradientError:
    assert report.solver == "rangeformer"
    assert report.gradient is not None
    return report.gradient


def exact_entries(problem: Problem) -> list[float]:
    """d log p(y) / d log of the noise and of every number of the kernel's parameters, by GPyTorch in float64."""
    found = []
    for module in (problem.likelihood, problem.model.covar_module):
        for name, raw, constraint in module.named_parameters_and_constraints():
            assert constraint is not None, name
            (gradient,) = torch.autograd.grad(problem.loss(), raw)
            (slope,) = torch.autograd.grad(constraint.transform(raw).log().sum(), raw)
            found += (-len(problem.y) * gradient / slope).reshape(-1).tolist()
    return found


@pytest.mark.parametrize("kernel", sorted(NAMES))
def test_entries_are_the_parameters_and_their_values_are_right_within_their_errors(kernel) -> None:
    problem = build(kernel, n=N)
    expected = exact_entries(problem)
    found = measured(step(problem))
    assert [entry.name for entry in found.entries] == NAMES[kernel]
    for entry, exact in zip(found.entries, expected, strict=True):
        assert abs(entry.value - exact) < 6 * entry.standard_error + 1e-6 * abs(exact)
        assert 0 < entry.standard_error < 30


def test_values_agree_with_the_gradient_that_is_handed_out() -> None:
    """The report speaks of the very gradient: same probes, same value."""
    problem = build("ard", n=N)
    found = measured(step(problem))
    raw = problem.model.covar_module.raw_outputscale
    slope = torch.sigmoid(raw.detach()) / problem.model.covar_module.outputscale.detach()
    handed = float(-N * raw.grad / slope)
    assert next(entry for entry in found.entries if entry.name == "outputscale").value == pytest.approx(
        handed, rel=1e-6
    )


@pytest.mark.parametrize(
    ("kernel", "rank"), [("matern32", 20), ("rational_quadratic", 100)], ids=["probes_alone", "control_variate"]
)
def test_standard_errors_are_honest(kernel, rank) -> None:
    """Over seeds, the errors are as large as they are said to be."""
    problem = build(kernel, n=N)
    expected = torch.tensor(exact_entries(problem))
    entries = []
    for seed in range(40):
        clear_memory()
        entries.append(measured(step(problem, seed=seed + 1, rank=rank)).entries)
    errors = torch.tensor([[entry.value for entry in found] for found in entries]) - expected
    told = torch.tensor([[entry.standard_error for entry in found] for found in entries])
    # Not the mean of squared ratios: of four groups' spread that has no variance.
    ratio = (errors.square().mean(0) / told.square().mean(0)).sqrt()
    assert bool((ratio > 0.6).all()), ratio
    assert bool((ratio < 1.6).all()), ratio
    # The noise's own is from every probe: its ratios themselves are those of a normal variable.
    scores = errors[:, 0] / told[:, 0]
    assert 0.6 < float(scores.square().mean().sqrt()) < 1.6


def test_kernels_that_gpytorch_evaluates_report_noise_and_scale_and_their_own_hooks_see_one_gradient() -> None:
    problem = build("spectral_mixture", n=N)
    seen: list[Tensor] = []
    for parameter in problem.model.covar_module.parameters():
        parameter.register_hook(seen.append)
    with settings.exact_size(1):
        found = measured(step(problem))
    assert [entry.name for entry in found.entries] == ["noise", "scale of K"]
    assert len(seen) == len(list(problem.model.covar_module.parameters()))


def test_a_matrix_of_unknown_origin_reports_noise_and_scale() -> None:
    problem = build("matern32", n=N)
    with torch.no_grad():
        kernel = problem.model.covar_module(problem.x).to_dense()
    noise, y = torch.full((N,), 0.05, dtype=torch.float64), problem.y
    with (
        settings.rangeformer(),
        settings.min_size(1),
        settings.exact_size(1),
        settings.solver(tolerance=1e-5),
        collect_reports() as reports,
    ):
        added_diagonal(kernel.requires_grad_(), noise).inv_quad_logdet(y.unsqueeze(-1), logdet=True)
    found = measured(reports[0])
    inverse = torch.linalg.inv(kernel.detach() + noise.diag())
    alpha = inverse @ y
    assert [entry.name for entry in found.entries] == ["noise", "scale of K"]
    for entry, part in zip(found.entries, (noise.diag(), kernel.detach()), strict=True):
        exact = 0.5 * float(alpha @ part @ alpha - (inverse * part).sum())
        assert abs(entry.value - exact) < 5 * entry.standard_error + 1e-3 * abs(exact)


def rough() -> Problem:
    """Eight probes leave its period's gradient uncertain by a third."""
    problem = build("periodic", n=300)
    problem.likelihood.noise = 0.05
    return problem


def test_more_probes_are_solved_where_the_error_exceeds_the_tolerance() -> None:
    problem = rough()
    few = step(problem, num_probes=8)
    clear_memory()
    tolerance = 0.9 * measured(few).relative
    more = step(problem, num_probes=8, gradient_tolerance=tolerance)
    assert more.columns_multiplied > 1.5 * few.columns_multiplied
    assert measured(more).relative < tolerance < measured(few).relative
    again = step(problem, num_probes=8, gradient_tolerance=tolerance)
    assert measured(again).entries == measured(more).entries
    assert measured(again).age == 1


def test_where_even_those_would_not_do_one_factorisation_answers_and_the_next_steps_too() -> None:
    problem = rough()
    _, expected = problem.loss_and_gradient()
    reports = []
    for _ in range(3):
        problem.model.zero_grad()
        reports.append(step(problem, num_probes=8, gradient_tolerance=1e-3, neighbours=0))
    assert [report.reason for report in reports] == [Reason.EXACT_GRADIENT] * 3
    assert not any(report.fell_back for report in reports)
    assert all(report.gradient is None for report in reports)
    assert relative(flat_gradient(problem.model), expected) < 1e-9


def test_errors_of_less_than_a_hundredth_nat_per_point_are_never_too_large() -> None:
    report = step(build("matern12", n=300), num_probes=8, gradient_tolerance=1e-9)
    assert measured(report).relative > 0
    assert report.reason is Reason.CONVERGED


@pytest.mark.parametrize(("period", "noise"), [(1.0, 1e-6), (0.05, 1e-6), (0.01, 1e-4)])
def test_gradients_that_probes_cannot_tell_are_exact_or_marked(period, noise) -> None:
    """A periodic kernel of small noise: what the probes say was off by orders of magnitude, without a word."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(458, 2, generator=generator, dtype=torch.float64)
    y = torch.sin(x.sum(1)) + 0.1 * torch.randn(458, generator=generator, dtype=torch.float64)

    def gradient() -> torch.Tensor:
        kernel: Any = ScaleKernel(PeriodicKernel()).double()
        kernel.base_kernel.period_length, kernel.base_kernel.lengthscale = period, 0.5
        likelihood: Any = GaussianLikelihood().double()
        likelihood.noise_covar.register_constraint("raw_noise", type(likelihood.noise_covar.raw_noise_constraint)(1e-9))
        likelihood.noise = noise
        problem = Problem(GP(x, y, likelihood, ZeroMean(), kernel), x, y, x)
        return problem.loss_and_gradient()[1]

    exact = gradient()
    with settings.rangeformer(), settings.min_size(1), collect_reports() as reports:
        found = gradient()
    error = relative(found, exact)
    if reports[0].solver == "exact":
        assert reports[0].reason is Reason.EXACT_GRADIENT
        assert error < 1e-5
    else:
        told = measured(reports[0]).relative
        assert error < 8 * told
        assert told < 0.1 or any("gradient uncertain" in note for note in reports[0].notes)


def test_infinity_measures_nothing() -> None:
    with mock.patch.object(gradient_error.GradientCheck, "__call__", side_effect=AssertionError("measured")):
        report = step(build(n=N), gradient_tolerance=math.inf)
        assert report.gradient is None
        assert "the gradient is not measured" in report.notes
        with pytest.raises(AssertionError, match="measured"):
            step(build(n=N), gradient_tolerance=1.0)


def test_what_needs_no_gradient_measures_none() -> None:
    unmeasured = mock.patch.object(gradient_error.GradientCheck, "__call__", side_effect=AssertionError("measured"))
    with unmeasured, settings.rangeformer(), settings.min_size(1), torch.no_grad(), collect_reports() as reports:
        build(n=N).loss()
    assert reports[0].gradient is None
    assert "gradient" not in reports[0].summary()


def test_between_checks_nothing_is_contracted_and_the_age_counts() -> None:
    problem = build(n=N)
    first = measured(step(problem))
    assert first.age == 0
    with mock.patch.object(FusedKernel, "contract", side_effect=AssertionError("contracted")):
        for age in (1, 2, 3):
            with settings.rangeformer(), settings.min_size(1), settings.solver(gradient_tolerance=1e6):
                problem.loss()
            report = last_report()
            assert report is not None
            found = measured(report)
            assert found.age == age
            assert found.entries == first.entries


def test_every_fiftieth_step_is_measured_again() -> None:
    problem = build(n=100)
    ages = [measured(step(problem, num_probes=8)).age for _ in range(52)]
    assert ages == [*range(50), 0, 1]


def test_a_spread_that_grows_is_measured_at_once() -> None:
    problem = build(n=N)
    step(problem)
    problem.likelihood.noise = 1e-3
    assert measured(step(problem)).age == 0


def test_the_excess_is_relative_to_the_gradient_or_to_what_is_negligible() -> None:
    entries = HyperparameterGradient("a", 3.0, 0.3), HyperparameterGradient("b", -4.0, 0.4)
    found = GradientError(entries)
    assert found.relative == pytest.approx(0.1)
    assert found.excess(0.05, 0.0) == pytest.approx(2)
    assert found.excess(0.05, 1.0) == pytest.approx(0.5)
    assert GradientError((HyperparameterGradient("a", 0.0, 0.1),)).relative == math.inf


@pytest.mark.parametrize(("kernel", "said"), [("matern32", False), ("linear_plus_rbf", True)])
def test_what_is_not_measured_of_a_kernel_that_gpytorch_evaluates_is_said(kernel: str, said: bool) -> None:
    problem = build(kernel, n=150)
    with rangeformer_path() as reports, settings.solver(gradient_tolerance=1e3):
        problem.loss().backward()
    assert any("noise and scale alone" in note for note in reports[-1].notes) == said
