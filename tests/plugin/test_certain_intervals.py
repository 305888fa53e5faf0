"""Intervals that are called certain hold the value of the very entries that the kernel evaluated, whatever they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from gp_rangeformer import FallbackWarning, collect_reports, settings
from gp_rangeformer.plugin import likelihood, symmetric
from gp_rangeformer.report import SolveReport
from gp_rangeformer.solvers.exact import JITTER
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import GP, Problem, added_diagonal

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

may_fall_back = pytest.mark.filterwarnings("ignore::gp_rangeformer.FallbackWarning")


class Given(Kernel):
    """K itself; inputs are row numbers."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **options: Any) -> Tensor:
        block = self.matrix[x1[:, 0].long()][:, x2[:, 0].long()]
        return block.diagonal() if diag else block


def problem_of(kernel: Kernel, x: Tensor, y: Tensor, noise: float) -> Problem:
    likelihood: Any = GaussianLikelihood(noise_constraint=GreaterThan(1e-9)).to(x.dtype)
    likelihood.noise = noise
    model = GP(x, y, likelihood, gpytorch.means.ZeroMean(), kernel.to(x.dtype))
    return Problem(model, x, y, x)


def scaled(kernel: Kernel, lengthscale: float, outputscale: float) -> Any:
    made: Any = ScaleKernel(kernel)
    made.base_kernel.lengthscale, made.outputscale = lengthscale, outputscale
    return made


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> list[LinearSystem]:
    """Every system that a solver is given."""
    seen: list[LinearSystem] = []
    original = symmetric.detached_system

    def spy(*arguments: Any) -> LinearSystem:
        seen.append(original(*arguments))
        return seen[-1]

    together = likelihood.evaluate_batch

    def spy_on_batch(kernel: Tensor, noise: Tensor, *arguments: Any) -> Any:
        seen.extend(LinearSystem(*element) for element in zip(kernel, noise, strict=True))
        return together(kernel, noise, *arguments)

    monkeypatch.setattr(symmetric, "detached_system", spy)
    monkeypatch.setattr(likelihood, "evaluate_batch", spy_on_batch)
    return seen


def truth(covariance: Tensor, y: Tensor) -> tuple[float, float]:
    """(log|A|, log p(y)) of the symmetric part of A, float64, refined once."""
    covariance = 0.5 * (covariance + covariance.mT)
    factor, b = torch.linalg.cholesky(covariance), y.double().unsqueeze(-1)
    solution = torch.cholesky_solve(b, factor)
    solution = solution + torch.cholesky_solve(b - covariance @ solution, factor)
    logdet = 2 * float(factor.diagonal().log().sum())
    return logdet, -0.5 * (float((b * solution).sum()) + logdet + len(y) * math.log(2 * math.pi))


def step(problem: Problem, min_size: int = 1) -> SolveReport:
    with settings.rangeformer(), settings.min_size(min_size), collect_reports() as reports:
        problem.loss()
    return reports[0]


def assert_inside(report: SolveReport, covariance: Tensor, y: Tensor) -> None:
    logdet, likelihood = truth(covariance, y)
    assert report.logdet_interval is not None
    assert report.mll_interval is not None
    assert report.logdet_interval.contains(logdet)
    assert report.mll_interval.contains(likelihood)


SMOOTH: dict[str, Callable[[], Kernel]] = {"matern52": lambda: MaternKernel(2.5), "rbf": RBFKernel}


@pytest.mark.parametrize("how", ["compiled", "tensors"])
@pytest.mark.parametrize("name", ["matern12", "matern52"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_many_length_scales_apart_stay_inside(dtype, name, how, systems) -> None:
    """Neighbours bound log|A| by entries of their own, which are to be those of K."""
    distinct = torch.randn(83, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = distinct[torch.arange(502) % 83].to(dtype)
    kernel = scaled({"matern12": MaternKernel(0.5), "matern52": MaternKernel(2.5)}[name], 0.0823, 0.8)
    with settings.solver(num_probes=4, tolerance=0.1), settings.fused_kernels(how):
        report = step(problem_of(kernel, x, torch.sin(9 * x[:, 0]), 1e-3))
    assert_inside(report, systems[0].to_dense(torch.float64), torch.sin(9 * x[:, 0]))


@may_fall_back
@pytest.mark.parametrize("offset", [-999.3, 1e5, 0.0])
@pytest.mark.parametrize("lengthscale", [0.3, 30.0])
@pytest.mark.parametrize("outputscale", [1e-3, 0.5, 1e3])
@pytest.mark.parametrize("min_size", [1, 10**6], ids=["rangeformer", "exact"])
def test_constant_targets_far_from_zero_stay_inside(min_size, outputscale, lengthscale, offset, systems) -> None:
    """Roundings of one sign do not average out over targets of one sign."""
    x = torch.rand(400, 1, generator=torch.Generator().manual_seed(0))
    y = torch.full((400,), offset) + (offset == 0) * torch.sin(9 * x[:, 0])
    report = step(problem_of(scaled(SMOOTH["matern52"](), lengthscale, outputscale), x, y, 0.7), min_size)
    assert_inside(report, systems[0].to_dense(torch.float64), y)


@pytest.mark.parametrize(
    ("n", "outputscale", "noise", "lengthscale"),
    [(510, 71.858, 0.072002, 1.44), (669, 105.007, 0.0367008, 133.95), (400, 1e3, 1e-2, 50.0), (300, 1e-3, 1.0, 0.1)],
)
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_float32_factorisations_know_their_rounding(name, n, outputscale, noise, lengthscale, systems) -> None:
    """Equal points, or nearly: every pivot rounds with the same sign."""
    x = torch.rand(n, 8, generator=torch.Generator().manual_seed(0)) if lengthscale != 1.44 else torch.zeros(n, 1)
    y = torch.full((n,), 3.7)
    report = step(problem_of(scaled(SMOOTH[name](), lengthscale, outputscale), x, y, noise), 10**6)
    assert report.solver == "exact"
    covariance = systems[0].to_dense(torch.float64)
    assert_inside(report, covariance, y)
    # The value answers for these entries: float32 alone would be off by far more.
    logdet, likelihood = truth(covariance, y)
    assert report.logdet == pytest.approx(logdet, abs=1e-3 * n)
    assert report.mll == pytest.approx(likelihood, abs=1e-3 * n)


def rotated(eigenvalues: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with these eigenvalues, and targets."""
    n, generator = len(eigenvalues), torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (basis * eigenvalues) @ basis.mT
    return 0.5 * (matrix + matrix.mT), torch.randn(n, generator=generator, dtype=torch.float64)


def numbers(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64).unsqueeze(-1)


def skew(matrix: Tensor, size: float) -> Tensor:
    other = torch.randn(len(matrix), len(matrix), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return matrix + size * (other - other.mT)


ASYMMETRIC: dict[str, Callable[[Tensor], Tensor]] = {
    "skew_tiny": lambda matrix: skew(matrix, 1e-7),
    "skew": lambda matrix: skew(matrix, 1e-4),
    "upper_triangle": lambda matrix: matrix + torch.triu(torch.full_like(matrix, 1e-5), 1),
    "lower_triangle": lambda matrix: matrix + torch.tril(torch.full_like(matrix, 1e-5), -1),
    "one_entry": lambda matrix: matrix + 1e-6 * (torch.arange(matrix.numel()).view_as(matrix) == 5),
}


@pytest.mark.parametrize("min_size", [1, 10**6], ids=["rangeformer", "exact"])
@pytest.mark.parametrize("name", sorted(ASYMMETRIC))
def test_an_asymmetric_matrix_means_its_symmetric_part(name, min_size) -> None:
    matrix, y = rotated(torch.logspace(2, -8, 300, dtype=torch.float64))
    matrix = ASYMMETRIC[name](matrix)
    problem = problem_of(Given(matrix), numbers(300), y, 0.01)
    report = step(problem, min_size)
    covariance = matrix + problem.likelihood.noise.item() * torch.eye(300, dtype=torch.float64)
    assert_inside(report, covariance, y)
    assert any("not symmetric" in note for note in report.notes)
    with settings.rangeformer(), settings.min_size(min_size), collect_reports() as reports, torch.no_grad():
        solution = added_diagonal(matrix, problem.likelihood.noise.item()).solve(y.unsqueeze(-1))
    symmetric = 0.5 * (covariance + covariance.mT)
    assert float((symmetric @ solution.squeeze(-1) - y).norm() / y.norm()) <= reports[0].residual


@pytest.mark.parametrize("min_size", [1, 10**6], ids=["rangeformer", "exact"])
def test_rounding_is_no_asymmetry(min_size, systems) -> None:
    """Products z z' in float32 differ in the last bit from z' z, as a spectral mixture kernel's do."""
    matrix, y = rotated(torch.logspace(1, -6, 200, dtype=torch.float64))
    matrix = matrix.float()
    matrix = torch.tril(matrix) + torch.triu(matrix, 1) * (1 + torch.finfo(torch.float32).eps)
    assert not torch.equal(matrix, matrix.mT)
    report = step(problem_of(Given(matrix), numbers(200).float(), y.float(), 0.3), min_size)
    assert not any("not symmetric" in note for note in report.notes)
    assert report.reason in (Reason.CONVERGED, Reason.EXACT_SMALL)
    assert_inside(report, systems[0].to_dense(torch.float64), y.float())


@pytest.mark.parametrize(("share", "rest"), [(0.2, 10.0), (0.4, 10.0), (0.4, 1e3), (0.9, 100.0)])
def test_a_slightly_negative_matrix_is_answered_exactly_and_says_so(share, rest) -> None:
    """A = K + D is positive definite, K is not: no certificate of the solver's holds."""
    eigenvalues = torch.full((400,), -share * 0.01, dtype=torch.float64)
    eigenvalues[:40] = rest
    matrix, y = rotated(eigenvalues)
    problem = problem_of(Given(matrix), numbers(400), y, 0.01)
    with pytest.warns(FallbackWarning, match="negative direction"):
        report = step(problem)
    assert report.solver == "exact"
    assert report.reason is Reason.NOT_PSD
    assert report.fell_back
    covariance = matrix + problem.likelihood.noise.item() * torch.eye(400, dtype=torch.float64)
    assert_inside(report, covariance, y)
    assert report.mll == pytest.approx(truth(covariance, y)[1], rel=1e-9)


@pytest.mark.parametrize(("n", "noise", "smooth"), [(150, 1e-3, True), (150, 1e-2, False), (400, 1e-2, True)])
@pytest.mark.parametrize("min_size", [1, 10**6], ids=["rangeformer", "exact"])
@may_fall_back
def test_entries_moved_by_half_an_ulp_stay_inside(min_size, n, noise, smooth, systems) -> None:
    x = torch.linspace(0, 1, n).unsqueeze(-1)
    random = torch.randn(n, generator=torch.Generator().manual_seed(0))
    y = torch.sin(6 * x[:, 0]) + noise**0.5 * random if smooth else random
    report = step(problem_of(scaled(RBFKernel(), 0.3, 5.0), x, y, noise), min_size)
    covariance = systems[0].to_dense(torch.float64)
    for seed in range(8):
        error = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
        error = torch.finfo(torch.float32).eps * (torch.triu(error) + torch.triu(error, 1).mT)
        noises = systems[0].noise.double().diag_embed()
        assert_inside(report, (covariance - noises) * (1 + error) + noises, y)


@pytest.mark.parametrize("outputscale", [0.7, 1.9])
@pytest.mark.parametrize(
    ("kernel", "n", "dimensions", "condition"),
    [(MaternKernel(1.5), 800, 2, 4e5), (MaternKernel(2.5), 800, 1, 1e5), (RBFKernel(), 600, 1, 4e5)],
)
@may_fall_back
def test_at_the_end_of_float32_intervals_hold_the_likelihood_of_float64(
    kernel, n, dimensions, condition, outputscale
) -> None:
    """Where entries are rounded by much of the noise, rounding moves values to one side: its second order."""
    x = torch.rand(n, dimensions, generator=torch.Generator().manual_seed(n + dimensions))
    y = torch.sin(5 * x).sum(1) / dimensions**0.5
    problem = problem_of(scaled(kernel, 1.5, outputscale), x, y, outputscale / condition)
    report = step(problem, 10**6)
    assert not any(note.startswith(JITTER) for note in report.notes)
    problem.model.double()
    with torch.no_grad(), gpytorch.settings.lazily_evaluate_kernels(False):
        exact = problem.model.covar_module(x.double()).to_dense()
    noise = problem.likelihood.noise.item()
    assert_inside(report, exact + noise * torch.eye(n, dtype=torch.float64), y)


@pytest.mark.parametrize("min_size", [1, 10**6], ids=["rangeformer", "exact"])
@may_fall_back
def test_residuals_of_near_twins_of_high_variance_are_as_claimed(min_size, systems) -> None:
    """Two points that differ in the last bits: the solution is large where the residual is small."""
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    x[1] = x[0] + 1e-6
    y = torch.randn(200, generator=torch.Generator().manual_seed(1))
    problem = problem_of(scaled(RBFKernel(), 0.2, 1e4), x, y, 0.05)
    with (
        settings.rangeformer(),
        settings.min_size(min_size),
        settings.solver(prediction_tolerance=0.01),
        collect_reports() as reports,
        torch.no_grad(),
    ):
        solution = problem.likelihood(problem.model(x)).lazy_covariance_matrix.solve(y.unsqueeze(-1))
    residual = y.double() - systems[0].to_dense(torch.float64) @ solution.squeeze(-1).double()
    assert float(residual.norm() / y.double().norm()) <= reports[0].residual


ISOLATED = [(269, 234.248, 9.275e-4), (300, 234.248, 9.275e-4), (400, 234.248, 9.275e-4)]
ISOLATED += [(200, 100.3, 1e-2), (300, 100.3, 1e-2), (300, 1.0, 0.1)]


@pytest.mark.parametrize(("n", "outputscale", "noise"), ISOLATED)
def test_isolated_points_leave_lanczos_an_interval_of_its_rounding(n, outputscale, noise) -> None:
    """All probes agree, and all of them are off by the rounding of products: no spread would tell."""
    x = 100 * torch.arange(n, dtype=torch.float32).unsqueeze(-1)
    y = torch.randn(n, generator=torch.Generator().manual_seed(0))
    problem = problem_of(scaled(RBFKernel(), 0.17, outputscale), x, y, noise)
    with settings.solver(logdet="lanczos"):
        report = step(problem)
    logdet = n * math.log(problem.model.covar_module.outputscale.item() + problem.likelihood.noise.item())
    assert report.logdet_method == "lanczos"
    assert report.logdet_statistical is not None
    assert report.logdet_statistical.contains(logdet)
    assert report.logdet_statistical.width > 0
    assert report.logdet_interval is not None
    assert report.logdet_interval.contains(logdet)


def mean_and_deviation(problem: Problem, dtype: torch.dtype, test_x: Tensor) -> tuple[Tensor, Tensor]:
    kernel = problem.model.covar_module
    moved = problem_of(scaled(type(kernel.base_kernel)(), 0.5, 1.0), problem.x.to(dtype), problem.y.to(dtype), 0.01)
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10**5):
        found = moved.predict(test_x.to(dtype))
        return found.mean.double(), (found.variance.double() + 0.01).sqrt()


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_means_of_targets_far_from_zero_are_as_good_as_a_factorisations(name, offset) -> None:
    generator = torch.Generator().manual_seed(0)
    x, test_x = torch.rand(600, 3, generator=generator), torch.rand(200, 3, generator=generator)
    y = offset + torch.sin(4 * x.sum(1)) + 0.1 * torch.randn(600, generator=generator)
    problem = problem_of(scaled(SMOOTH[name](), 0.5, 1.0), x, y, 0.01)
    expected, deviation = mean_and_deviation(problem, torch.float64, test_x)
    plain, _ = mean_and_deviation(problem, torch.float32, test_x)
    errors = {}
    for dtype in (torch.float32, torch.float64):
        with settings.rangeformer(), settings.min_size(1), collect_reports() as reports:
            found, _ = mean_and_deviation(problem, dtype, test_x)
        told = [report.mean_error for report in reports if report.mean_error is not None]
        errors[dtype] = float(((found - expected).abs() / deviation).max())
        if dtype == torch.float64:
            # In float32 the host's own product k*' x rounds besides.
            assert float((found - expected).abs().max()) / 0.1 <= max(told)
    assert errors[torch.float32] <= max(1.2 * float(((plain - expected).abs() / deviation).max()), 0.005)
    assert errors[torch.float64] < 0.005


@pytest.mark.parametrize("min_size", [1, 10**6], ids=["rangeformer", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_mean_error_bounds_that_of_any_mean_in_units_of_the_noise(offset, dtype, min_size, systems) -> None:
    """Means k*' x at random points, the product taken in float64: the error is that of the solve."""
    generator = torch.Generator().manual_seed(1)
    x, test_x = (torch.rand(count, 3, generator=generator).to(dtype) for count in (300, 200))
    y = offset + torch.sin(4 * x.sum(1)) + 0.1 * torch.randn(300, generator=generator).to(dtype)
    problem = problem_of(scaled(MaternKernel(2.5), 0.5, 1.0), x, y, 0.01)
    with settings.rangeformer(), settings.min_size(min_size), collect_reports() as reports, torch.no_grad():
        problem.predict(test_x).mean  # noqa: B018
        solution = problem.model.prediction_strategy.mean_cache.double()
    # In float32 the prediction is served by another solve, before the one whose result is looked at.
    told = [report.mean_error for report in reports if report.mean_error is not None][-1]
    exact = np.linalg.solve(systems[0].to_dense(torch.float64).numpy(), y.double().numpy())
    with torch.no_grad():
        cross = problem.model.covar_module(test_x.double(), x.double()).to_dense().double()
    error = float((cross @ (solution - torch.from_numpy(exact))).abs().max()) / problem.likelihood.noise.item() ** 0.5
    assert error <= told
    assert told < math.inf
