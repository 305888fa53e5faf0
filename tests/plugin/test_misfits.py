"""Shapes, dtypes and devices that do not fit: the host's own error, or one that says what to move."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from linear_operator.operators import AddedDiagLinearOperator, DenseLinearOperator, DiagLinearOperator

from gp_rangeformer import settings
from gp_rangeformer.plugin import likelihood
from gp_rangeformer.plugin.symmetric import symmetric_system
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import added_diagonal, build
from tests.plugin.test_bad_input import PATHS, kernel_matrix, paths


@paths
def test_empty_data_is_left_to_the_host(path: str) -> None:
    operator = added_diagonal(torch.empty(0, 0, dtype=torch.float64), torch.empty(0, dtype=torch.float64))
    rhs = torch.empty(0, 1, dtype=torch.float64)

    def outcome() -> Any:
        try:
            return operator.solve(rhs).shape
        except Exception as error:  # whatever the host does, we do
            return type(error)

    expected = outcome()
    with PATHS[path]() as reports:
        assert outcome() == expected
    assert [report.reason for report in reports] == [Reason.SHAPE]


@paths
def test_no_right_hand_sides_are_left_to_the_host(path: str) -> None:
    operator = added_diagonal(kernel_matrix(), 0.1)
    with PATHS[path]() as reports:
        assert operator.solve(torch.empty(200, 0, dtype=torch.float64)).shape == (200, 0)
    assert [report.reason for report in reports] == [Reason.SHAPE]


@paths
@pytest.mark.parametrize("shape", [(199,), (199, 1), (2, 199, 1)])
def test_a_right_hand_side_of_another_size_is_the_hosts_error(shape: tuple[int, ...], path: str) -> None:
    operator = added_diagonal(kernel_matrix(), 0.1)
    rhs = torch.ones(shape, dtype=torch.float64)
    for ask_host in (lambda: operator.solve(rhs), lambda: operator.inv_quad_logdet(rhs, logdet=True)):
        with pytest.raises(RuntimeError) as expected:
            ask_host()
        with PATHS[path]() as reports, pytest.raises(RuntimeError) as found:
            ask_host()
        assert str(found.value) == str(expected.value)
        assert [report.reason for report in reports] == [Reason.SHAPE]


@paths
def test_targets_of_another_length_are_the_hosts_error_through_a_model(path: str) -> None:
    problem = build()
    problem.model.train()
    marginal = problem.likelihood(problem.model(problem.x))
    with pytest.raises(Exception, match=r".+") as expected:
        marginal.log_prob(problem.y[:-1])
    for log_prob in (True, False):
        with (
            PATHS[path](),
            gpytorch.settings.fast_computations(log_prob=log_prob),
            pytest.raises(type(expected.value)),
        ):
            marginal.log_prob(problem.y[:-1])


@paths
@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_are_left_to_the_host_and_said(dtype: torch.dtype, path: str) -> None:
    kernel = (10 * kernel_matrix()).to(dtype)
    operator = added_diagonal(kernel, torch.ones(200))
    rhs = torch.ones(200, 1).to(dtype)

    def outcome() -> Any:
        try:
            return operator.solve(rhs)
        except Exception as error:
            return type(error), str(error)

    expected = outcome()
    with PATHS[path]() as reports:
        found = outcome()
    assert [(r.solver, r.reason) for r in reports] == [("gpytorch", Reason.UNSUPPORTED_DTYPE)]
    assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@paths
def test_mixed_dtypes_are_left_to_the_host_and_named(path: str) -> None:
    kernel, rhs = kernel_matrix(), torch.ones(200, 1, dtype=torch.float64)
    parts: Any = DenseLinearOperator(kernel), DiagLinearOperator(torch.ones(200))
    mixed_noise = AddedDiagLinearOperator(*parts)
    cases: list[Callable[[], Any]] = [
        lambda: added_diagonal(kernel, 0.1).solve(rhs.float()),
        lambda: added_diagonal(kernel, 0.1).inv_quad_logdet(rhs.float(), logdet=True),
        lambda: mixed_noise.solve(rhs),
    ]
    for case in cases:
        try:
            expected: Any = case()
        except Exception as error:
            expected = type(error)
        with PATHS[path]() as reports:
            if isinstance(expected, type):
                with pytest.raises(expected):
                    case()
            else:
                torch.testing.assert_close(case(), expected, rtol=0, atol=0)
        assert [(r.solver, r.reason) for r in reports] == [("gpytorch", Reason.MIXED_DTYPE)]


@paths
def test_mixed_devices_are_an_error_that_says_what_to_move(path: str) -> None:
    rhs = torch.ones(200, 1, dtype=torch.float64, device="meta")
    with PATHS[path](), pytest.raises(RuntimeError, match=r"right-hand side is on meta.*cpu.*\.to\(device\)"):
        added_diagonal(kernel_matrix(), 0.1).solve(rhs)
    noise = DiagLinearOperator(torch.ones(200, dtype=torch.float64, device="meta"))
    parts: Any = DenseLinearOperator(kernel_matrix()), noise
    operator = AddedDiagLinearOperator(*parts)
    with PATHS[path](), pytest.raises(RuntimeError, match=r"noise on meta.*together"):
        operator.solve(torch.ones(200, 1, dtype=torch.float64))


def test_a_recognised_kernel_with_a_negative_scale_is_not_taken_for_positive_semi_definite(monkeypatch) -> None:
    """Nothing but Ritz values tells what its matrix is."""
    rough = gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.MaternKernel(0.5), outputscale_constraint=gpytorch.constraints.Interval(-10, 10)
    )
    trusted = []

    def seen(*arguments: Any) -> Any:
        system = symmetric_system(*arguments)
        trusted.append(system.trusted)
        return system

    monkeypatch.setattr(likelihood, "symmetric_system", seen)
    problem = build("rbf", n=300)
    problem.model.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double() + rough.double()
    for scale in (0.01, -0.01):
        rough.outputscale = scale
        with settings.rangeformer(), settings.min_size(100), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the exact path has answered
            problem.loss()
    assert trusted == [True, False]
