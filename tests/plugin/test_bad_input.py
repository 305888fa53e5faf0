"""Right always, or loud: NaN, zero and negative noise, indefinite matrices, duplicated rows, the smallest systems."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from linear_operator.utils.errors import NanError, NotPSDError

from gp_rangeformer import FallbackWarning, settings
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import (
    GP,
    KERNELS,
    MEANS,
    added_diagonal,
    build,
    data,
    exact_path,
    marginal_log_likelihood,
    rangeformer_path,
    relative,
)

PATHS: dict[str, Callable[..., Any]] = {"exact": exact_path, "rangeformer": rangeformer_path}
paths = pytest.mark.parametrize("path", PATHS)
operations = pytest.mark.parametrize("operation", ["inv_quad_logdet", "solve", "root"])


def kernel_matrix(n: int = 200, dtype: torch.dtype = torch.float64, lengthscale: float = 0.3) -> torch.Tensor:
    x = data(n)[0]
    return torch.exp(-torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / lengthscale).to(dtype)


def ask(operator: Any, operation: str, rhs: torch.Tensor | None = None) -> torch.Tensor:
    rhs = torch.ones(operator.shape[-1], 1, dtype=operator.dtype) if rhs is None else rhs
    if operation == "inv_quad_logdet":
        inv_quad, logdet = operator.inv_quad_logdet(rhs, logdet=True)
        return torch.stack([inv_quad, logdet])
    if operation == "solve":
        return operator.solve(rhs)
    root = operator.root_inv_decomposition().root.to_dense()
    return root @ root.mT


def answer(kernel: torch.Tensor, noise: torch.Tensor | float, operation: str) -> torch.Tensor:
    """The dense float64 answer to the same question."""
    noise = torch.as_tensor(noise, dtype=torch.float64).expand(kernel.shape[-1])
    dense = kernel.double() + noise.diag_embed()
    rhs = torch.ones(len(dense), 1, dtype=torch.float64)
    if operation == "inv_quad_logdet":
        return torch.stack([(rhs * torch.linalg.solve(dense, rhs)).sum(), torch.logdet(dense)])
    return torch.linalg.solve(dense, rhs if operation == "solve" else torch.eye(len(dense), dtype=torch.float64))


@paths
@operations
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["diagonal", "off_diagonal", "everywhere"])
def test_a_kernel_matrix_that_is_not_finite_raises_nan_error(where: str, bad: float, operation: str, path: str) -> None:
    kernel = kernel_matrix()
    if where == "diagonal":
        kernel[7, 7] = bad
    elif where == "off_diagonal":
        kernel[7, 100] = kernel[100, 7] = bad
    else:
        kernel[:] = bad
    with PATHS[path](), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NanError, match=r"NaN or infinity.*look for NaN"):
            ask(added_diagonal(kernel, 0.1), operation)


@paths
@operations
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_noise_that_is_not_finite_raises_nan_error(bad: float, operation: str, path: str) -> None:
    noise = torch.full((200,), 0.1, dtype=torch.float64)
    noise[5] = bad
    with PATHS[path](), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NanError, match="NaN or infinity"):
            ask(added_diagonal(kernel_matrix(), noise), operation)


@paths
@pytest.mark.parametrize("operation", ["inv_quad_logdet", "solve"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_targets_that_are_not_finite_raise_nan_error_with_a_remedy(bad: float, operation: str, path: str) -> None:
    rhs = torch.ones(200, 1, dtype=torch.float64)
    rhs[3] = bad
    with PATHS[path](), pytest.raises(NanError, match="observation_nan_policy"):
        ask(added_diagonal(kernel_matrix(), 0.1), operation, rhs)


@paths
@pytest.mark.usefixtures("predicts_small_systems")
def test_a_point_that_is_not_finite_is_not_blamed_on_the_targets_alone(path: str) -> None:
    problem = build("rbf", n=150)
    x = problem.test_x.clone()
    x[1, 0] = torch.nan
    problem.model.eval()
    with PATHS[path](), gpytorch.settings.max_eager_kernel_size(0):
        with pytest.raises(NanError, match="clean the targets and the points that are predicted"):
            problem.model(x).variance  # noqa: B018
        with torch.no_grad():
            mean = problem.model(x).mean
    assert mean.isnan().tolist() == x.isnan().any(1).tolist()


@paths
def test_nan_in_training_data_raises_nan_error_through_a_model(path: str) -> None:
    for broken in ("x", "y"):
        problem = build()
        tensor = getattr(problem, broken).clone()
        tensor[4] = torch.nan
        setattr(problem, broken, tensor)
        problem.model.set_train_data(problem.x, problem.y, strict=False)
        # debug compares the inputs with the training inputs, and NaN equals nothing
        with PATHS[path](), gpytorch.settings.debug(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(NanError, match=r"NaN or infinity: (look for|clean)"):
                problem.loss()


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
def test_large_finite_targets_are_not_taken_for_infinite_ones() -> None:
    """A sum of float32 targets of 1e38 overflows although each of them is finite."""
    kernel = kernel_matrix(dtype=torch.float32)
    rhs = torch.full((200, 1), 1e37, dtype=torch.float32)
    with exact_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # squares of such numbers overflow, which is said
        found = ask(added_diagonal(kernel, 1.0), "solve", rhs)
    assert relative(found / 1e37, answer(kernel, 1.0, "solve")) < 1e-4


@paths
@operations
def test_zero_noise_is_answered_exactly_and_said(operation: str, path: str) -> None:
    kernel = kernel_matrix(lengthscale=0.05)  # well conditioned by itself
    with PATHS[path]() as reports, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ask(added_diagonal(kernel, 0.0), operation)
    assert relative(found, answer(kernel, 0.0, operation)) < 1e-9
    assert reports[0].solver == "exact"
    if path == "rangeformer" and operation != "root":
        assert reports[0].reason is Reason.ZERO_NOISE
        assert reports[0].fell_back
        assert any(issubclass(warning.category, FallbackWarning) for warning in caught)


@paths
@operations
def test_negative_noise_is_right_where_the_sum_is_definite_and_an_error_where_not(operation: str, path: str) -> None:
    kernel = kernel_matrix(lengthscale=0.05) + 0.5 * torch.eye(200, dtype=torch.float64)
    with PATHS[path](), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ask(added_diagonal(kernel, -0.1), operation)
        assert relative(found, answer(kernel, -0.1, operation)) < 1e-9
        with pytest.raises(NotPSDError, match=r"not positive definite.*noise"):
            ask(added_diagonal(kernel, -3.0), operation)


@paths
@operations
def test_a_matrix_that_is_not_positive_semi_definite_is_an_error(operation: str, path: str) -> None:
    basis, _ = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64))
    for negative in (1, 50, 200):
        eigenvalues = torch.linspace(0.5, 2, 200, dtype=torch.float64)
        eigenvalues[:negative] = -1
        kernel = basis * eigenvalues @ basis.mT
        with PATHS[path](), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(NotPSDError, match="not positive definite"):
                ask(added_diagonal(0.5 * (kernel + kernel.mT), 0.1), operation)


@paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [1e-6, 1e-4])
def test_duplicated_rows_with_tiny_noise_are_right_or_said_to_be_hard(
    noise: float, dtype: torch.dtype, path: str
) -> None:
    x = data(200)[0]
    x[100:] = x[:100]
    kernel = torch.exp(-torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / 0.5).to(dtype)
    rhs = torch.sin(4 * x[:, :1]).to(dtype)
    dense = kernel.double() + torch.as_tensor(noise, dtype=dtype).double() * torch.eye(200, dtype=torch.float64)
    expected = (rhs.double() * torch.linalg.solve(dense, rhs.double())).sum()
    arguments = {"tolerance": 0.01} if path == "rangeformer" else {}
    with PATHS[path](**arguments) as reports, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inv_quad, logdet = added_diagonal(kernel, noise).inv_quad_logdet(rhs, logdet=True)
    jitter = any("jitter" in note for note in reports[0].notes)
    assert jitter == any("jitter" in str(warning.message) for warning in caught)
    if jitter:
        return  # the matrix, rounded to float32, is not definite: said twice
    assert abs(float(inv_quad) - float(expected)) < 0.01 * 200
    allowed = 0.01 * 200
    if reports[0].logdet_statistical is not None:  # honest about its probes, which are few for this spectrum
        allowed = 0.75 * reports[0].logdet_statistical.width
    assert abs(float(logdet) - float(torch.logdet(dense))) < allowed


@paths
@pytest.mark.parametrize("columns", [1, 3])
def test_zero_targets_have_zero_solutions(columns: int, path: str) -> None:
    operator = added_diagonal(kernel_matrix(), 0.1)
    rhs = torch.zeros(200, columns, dtype=torch.float64)
    with PATHS[path]() as reports:
        assert not operator.solve(rhs).any()
        inv_quad, logdet = operator.inv_quad_logdet(rhs, logdet=True)
    assert {report.solver for report in reports} == {path}
    assert float(inv_quad) == 0
    assert torch.isfinite(logdet)


@pytest.mark.parametrize("size", [1, 2, 3])
@paths
def test_the_smallest_systems_are_right(size: int, path: str) -> None:
    kernel = torch.eye(size, dtype=torch.float64) + 1
    with PATHS[path]() as reports:
        for operation in ("inv_quad_logdet", "solve", "root"):
            found = ask(added_diagonal(kernel, 0.5), operation)
            assert relative(found, answer(kernel, 0.5, operation)) < 1e-6
    assert reports[0].solver == path
    assert {report.solver for report in reports} <= {"exact", "rangeformer"}


def test_one_training_point_trains_and_predicts() -> None:
    x, y, test_x = data(1)
    model = GP(
        x, y, gpytorch.likelihoods.GaussianLikelihood(), MEANS["zero"](torch.Size()), KERNELS["rbf"](torch.Size())
    )
    model = model.double()

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model.train()
        loss = marginal_log_likelihood(model)(model(x), y)
        model.eval()
        prediction: Any = model(test_x)
        return loss.detach(), prediction.mean.detach(), prediction.variance.detach()

    expected = run()
    for path in PATHS.values():
        with path() as reports:
            found = run()
        assert len(reports) == 3
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("path", PATHS)
def test_a_fixed_noise_of_zero_is_raised_by_the_host_and_answered(path: str) -> None:
    x, y, _ = data(150)
    with pytest.warns(gpytorch.utils.warnings.NumericalWarning, match="Very small noise"):
        likelihood = FixedNoiseGaussianLikelihood(torch.zeros(150, dtype=torch.float64))
    model = GP(x, y, likelihood, MEANS["zero"](torch.Size()), KERNELS["matern12"](torch.Size())).double()
    mll = marginal_log_likelihood(model)
    expected = 150 * mll(model.train()(x), y).item()
    with PATHS[path]() as reports:
        mll(model.train()(x), y)
    (report,) = reports
    assert report.solver == path
    assert report.mll is not None
    assert report.mll_interval is not None
    assert report.mll_interval.contains(expected)
    if report.mll_statistical is not None:
        assert abs(report.mll - expected) < 0.75 * report.mll_statistical.width
    else:
        assert report.mll == pytest.approx(expected, rel=1e-9)


def test_a_wrong_answer_would_be_noticed_a_budget_of_one_pass_falls_back() -> None:
    operator = added_diagonal(kernel_matrix(), 0.001)
    with (
        rangeformer_path() as reports,
        settings.solver(max_passes=1),
        pytest.warns(FallbackWarning, match="max_passes"),
    ):
        found = ask(operator, "inv_quad_logdet")
    assert (reports[0].solver, reports[0].reason) == ("exact", Reason.MAX_PASSES)
    assert relative(found, answer(kernel_matrix(), 0.001, "inv_quad_logdet")) < 1e-9
