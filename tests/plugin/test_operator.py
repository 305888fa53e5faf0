"""The operator used directly: linear_operator's own test case, torch's dispatch, every shape of right-hand side."""

from __future__ import annotations

import contextlib
import unittest
from typing import Any

import linear_operator
import pytest
import torch
from linear_operator import settings as host_settings
from linear_operator.operators import AddedDiagLinearOperator, DenseLinearOperator, DiagLinearOperator
from linear_operator.test.linear_operator_test_case import LinearOperatorTestCase

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import exact_path, rangeformer_path, relative

PATHS = {"exact": exact_path, "rangeformer": rangeformer_path}
paths = pytest.mark.parametrize("path", PATHS)
batches = pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])


def gaussian_kernel(n: int, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A smooth kernel matrix with unit diagonal; each batch element has its own length scale."""
    x = torch.rand(*batch, n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    scale = torch.linspace(0.2, 0.3, max(1, torch.Size(batch).numel()), dtype=torch.float64).reshape(*batch, 1, 1)
    return torch.exp(-distance / scale).to(dtype)


class _HostCase(LinearOperatorTestCase):
    """The host's test case with the flag on, and with tolerances that a solver of our precision must meet."""

    seed = 0
    size = 5
    batch: tuple[int, ...] = ()
    should_call_cg = False  # we answer, above the host's choice between Cholesky and CG
    expected_solver = "exact"
    tolerances = {  # noqa: RUF012
        **LinearOperatorTestCase.tolerances,
        "grad": {"rtol": 1e-3, "atol": 1e-5},
        "inv_quad": {"rtol": 1e-4, "atol": 1e-4},
        "logdet": {"rtol": 1e-4, "atol": 1e-4},
        "solve": {"rtol": 1e-3, "atol": 1e-5},
        "root_inv_decomposition": {"rtol": 1e-3, "atol": 1e-4},
    }
    answered = ("test_solve_m", "test_solve_v", "test_logdet", "test_inv_quad_logdet", "test_root_inv")

    def setUp(self) -> None:
        super().setUp()
        self.context = contextlib.ExitStack()
        self.enter()

    def enter(self) -> None:
        self.reports = self.context.enter_context(exact_path())

    def tearDown(self) -> None:
        self.context.close()
        super().tearDown()
        name: str = self._testMethodName  # type: ignore[attr-defined]
        # What the host's case itself leaves out for batches.
        skipped = bool(self.batch) and "vector" in name and "cholesky" not in name
        skipped = skipped or (self.skip_slq_tests and "inv_quad_logdet" in name)
        if name.startswith(self.answered) and not skipped:
            # The operator's leaves require gradients, and a differentiable root is the host's.
            solvers = {report.solver for report in self.reports if report.reason is not Reason.ROOT_GRADIENT}
            assert solvers, name
            assert solvers <= {self.expected_solver, "exact"}, name
            many_columns = "broadcast" in name or "left_cholesky" in name
            assert self.expected_solver in solvers or many_columns, name

    def create_linear_op(self) -> Any:
        kernel = gaussian_kernel(self.size, self.batch, torch.float32).requires_grad_()
        diagonal = torch.linspace(0.5, 1.5, self.size).expand(*self.batch, self.size).clone().requires_grad_()
        parts: Any = DenseLinearOperator(kernel), DiagLinearOperator(diagonal)
        return AddedDiagLinearOperator(*parts)

    def evaluate_linear_op(self, linear_op: Any) -> torch.Tensor:
        return linear_op._linear_op.tensor + linear_op._diag_tensor._diag.diag_embed()


class TestHostCaseExact(_HostCase, unittest.TestCase):
    pass


class TestHostCaseExactBatch(_HostCase, unittest.TestCase):
    batch = (3,)


class TestHostCaseExactTwoBatchDimensions(_HostCase, unittest.TestCase):
    batch = (2, 2)
    skip_slq_tests = True  # as the host does for its own multi-batch cases


class _RangeFormerHostCase(_HostCase):
    size = 192  # 6 columns of right-hand sides are then few enough for the solver
    expected_solver = "rangeformer"
    tolerances = {  # noqa: RUF012
        **_HostCase.tolerances,
        "logdet": {"rtol": 0.02, "atol": 0.02},
        "grad": {"rtol": 1e-3, "atol": 1e-4},
    }

    def enter(self) -> None:
        self.reports = self.context.enter_context(rangeformer_path(tolerance=1e-5, probes=512))


# The rest asks nothing of the plug-in, and its tolerances are made for 5 x 5 matrices.
for _name in dir(_RangeFormerHostCase):
    if _name.startswith("test_") and not _name.startswith(("test_solve_m", "test_solve_v", "test_inv_quad_logdet")):
        setattr(_RangeFormerHostCase, _name, None)


class TestHostCaseRangeFormer(_RangeFormerHostCase, unittest.TestCase):
    pass


class TestHostCaseRangeFormerBatch(_RangeFormerHostCase, unittest.TestCase):
    batch = (2,)


def operator(batch: tuple[int, ...] = (), n: int = 200, noise: float = 0.1) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(K + noise I as an operator, its leaves' matrix K and noise)."""
    kernel = gaussian_kernel(n, batch).requires_grad_()
    diagonal = torch.full((*batch, 1), noise, dtype=torch.float64, requires_grad=True)
    return DenseLinearOperator(kernel).add_diagonal(diagonal), kernel, diagonal


def dense(kernel: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return kernel + noise.expand(kernel.shape[:-1]).diag_embed()


@paths
@batches
def test_torch_logdet_is_answered(path: str, batch: tuple[int, ...]) -> None:
    """Without a right-hand side: torch.logdet and Tensor-like .logdet()."""
    op, kernel, noise = operator(batch)
    expected = torch.logdet(dense(kernel, noise))
    with PATHS[path]() as reports:
        found = torch.logdet(op)
        again = op.logdet()
    assert [r.solver for r in reports] == [path, path]
    assert reports[0].columns == 0
    assert found.shape == expected.shape == torch.Size(batch)
    torch.testing.assert_close(found, again, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-10 if path == "exact" else 0.02, atol=0)
    (noise_grad,) = torch.autograd.grad(found.sum(), noise, retain_graph=True)
    (host_grad,) = torch.autograd.grad(expected.sum(), noise)
    assert relative(noise_grad, host_grad) < (1e-9 if path == "exact" else 0.1)


@paths
@batches
@pytest.mark.parametrize("reduce", [True, False])
def test_inv_quad_logdet_has_the_hosts_shapes_and_values(path: str, batch: tuple[int, ...], reduce: bool) -> None:
    op, kernel, noise = operator(batch)
    rhs = torch.randn(*batch, 200, 3, dtype=torch.float64, requires_grad=True)
    expected, expected_logdet = op.inv_quad_logdet(rhs, True, reduce)
    expected_alone, expected_zero = op.inv_quad_logdet(rhs, False, reduce)
    expected_nothing, _ = op.inv_quad_logdet(None, True)
    assert expected_zero is None  # in the host's Cholesky path
    assert expected_nothing is None
    with PATHS[path]() as reports:
        found, logdet = op.inv_quad_logdet(rhs, True, reduce)
        alone, zero = op.inv_quad_logdet(rhs, False, reduce)
        nothing, _ = op.inv_quad_logdet(None, True)
    assert {r.solver for r in reports} == {path}
    assert (found.shape, logdet.shape) == (expected.shape, expected_logdet.shape)
    assert alone.shape == expected_alone.shape
    assert zero is None
    assert nothing is None
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(alone, expected, rtol=1e-9, atol=0)
    with PATHS[path](), host_settings.max_cholesky_size(1):
        _, zero = op.inv_quad_logdet(rhs, False, reduce)
        nothing, _ = op.inv_quad_logdet(None, True)
    assert (float(zero), zero.shape) == (0, ())
    assert not nothing.any()
    leaves = (rhs, kernel, noise)
    for ours, host in zip(
        torch.autograd.grad(alone.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        assert relative(ours, host) < 1e-6


def test_asking_for_nothing_is_the_hosts_error() -> None:
    op, _, _ = operator()
    with exact_path(), pytest.raises(RuntimeError, match="must be specifed"):
        op.inv_quad_logdet(None, False)


RHS_SHAPES = [
    ((), (200,)),
    ((), (200, 1)),
    ((), (200, 4)),
    ((), (3, 200, 2)),
    ((), (2, 3, 200, 1)),
    ((2,), (200, 2)),
    ((2,), (2, 200, 2)),
    ((2,), (1, 200, 2)),
    ((2,), (3, 2, 200, 1)),
    ((2, 1), (1, 3, 200, 1)),
]


@paths
@pytest.mark.parametrize(("batch", "shape"), RHS_SHAPES)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left_and_right"])
def test_solve_broadcasts_as_the_host_does(
    path: str, batch: tuple[int, ...], shape: tuple[int, ...], left: bool
) -> None:
    op, kernel, noise = operator(batch)
    rhs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    leaves = [rhs, kernel, noise]
    arguments = [rhs]
    if left:
        # A left factor of the operator's own batch shape is what the host supports everywhere
        arguments.append(torch.randn(*batch, 5, 200, dtype=torch.float64, requires_grad=True))
        leaves.append(arguments[1])
    solution = torch.linalg.solve(dense(kernel, noise), rhs.unsqueeze(-1) if rhs.dim() == 1 else rhs)
    solution = solution.squeeze(-1) if rhs.dim() == 1 else solution
    expected = arguments[1] @ solution if left else solution
    weight = torch.randn_like(expected)
    host = torch.autograd.grad((expected * weight).sum(), leaves)
    with PATHS[path]() as reports:
        found = linear_operator.solve(op, *arguments)
        ours = torch.autograd.grad((found * weight).sum(), leaves)
    assert path in {r.solver for r in reports}
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-5
    for index, (one, other) in enumerate(zip(ours, host, strict=True)):
        other = 0.5 * (other + other.mT) if index == 1 else other
        assert relative(one, other) < 1e-5


def test_many_columns_are_answered_by_one_factorisation() -> None:
    op, kernel, noise = operator()
    rhs = torch.randn(200, 60, dtype=torch.float64)
    with rangeformer_path() as reports:
        found = op.solve(rhs)
    assert (reports[0].solver, reports[0].reason) == ("exact", Reason.EXACT_MANY_COLUMNS)
    assert relative(found, torch.linalg.solve(dense(kernel, noise), rhs)) < 1e-10


def test_a_solve_is_twice_differentiable_like_the_hosts() -> None:
    op, kernel, noise = operator()
    rhs = torch.randn(200, 2, dtype=torch.float64)

    def second(solution: torch.Tensor) -> torch.Tensor:
        (first,) = torch.autograd.grad(solution.square().sum(), noise, create_graph=True)
        return torch.autograd.grad(first.sum(), noise)[0]

    expected = second(torch.linalg.solve(dense(kernel, noise), rhs))
    for path in PATHS.values():
        with path():
            found = second(op.solve(rhs))
        assert relative(found, expected) < 1e-6


def test_a_root_of_the_inverse_with_its_own_method_is_the_hosts() -> None:
    op, _, _ = operator()
    with rangeformer_path() as reports:
        root = op.root_inv_decomposition(method="symeig").root.to_dense()
    assert (reports[0].solver, reports[0].reason) == ("gpytorch", Reason.CUSTOM_ROOT)
    expected = operator()[0].root_inv_decomposition(method="symeig").root.to_dense()
    assert torch.equal(root, expected)


@paths
def test_the_gradient_of_a_root_is_the_hosts(path: str) -> None:
    def gradient() -> torch.Tensor:
        op, _, noise = operator()
        root = op.root_inv_decomposition().root.to_dense()
        return torch.autograd.grad((root @ root.mT).square().sum(), noise)[0]

    expected = gradient()
    with PATHS[path]() as reports:
        found = gradient()
    assert [(r.solver, r.reason) for r in reports] == [("gpytorch", Reason.ROOT_GRADIENT)]
    assert torch.equal(found, expected)


def test_a_cached_root_is_used_as_the_host_would() -> None:
    op, _, _ = operator()
    with torch.no_grad(), exact_path() as reports:
        first = op.root_inv_decomposition()
        second = op.root_inv_decomposition()
    assert second is first
    assert len(reports) == 1


def test_operators_below_exact_size_stay_with_the_host() -> None:
    op, _, _ = operator(n=50)
    expected = torch.logdet(op)
    with settings.rangeformer(), collect_reports() as reports:
        found = torch.logdet(op)
    assert [(r.solver, r.reason) for r in reports] == [("gpytorch", Reason.TOO_SMALL)]
    assert torch.equal(found, expected)
