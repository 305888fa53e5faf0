"""K as one dense matrix, or recomputed at every product: the same answers, and memory that is foreseen."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor

from gp_rangeformer import FallbackWarning, collect_reports, last_report, settings
from gp_rangeformer.allocation import free_memory
from gp_rangeformer.allocation.free_memory import Demand, InsufficientMemoryError, free_bytes
from gp_rangeformer.kernels.matrices.share import ALONE
from gp_rangeformer.plugin.fused_operator import FusedLinearOperator
from gp_rangeformer.report import SolveReport
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.system.linear_system import LinearSystem
from tests.kernels.test_memory import peak
from tests.plugin.market import GP, Problem, build, data, exact_path, flat_gradient, rangeformer_path, relative
from tests.plugin.test_fused import RECOGNISED, hessian_row_sums

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

kernels = pytest.mark.parametrize("kernel", RECOGNISED)
paths = pytest.mark.parametrize("path", [exact_path, rangeformer_path], ids=["exact", "rangeformer"])
MIB = 2**20


def both(path: Any, answer: Callable[[], Any]) -> tuple[Any, Any]:
    """``answer`` with K recomputed, and dense."""
    found = []
    for storage in ("tiles", "dense"):
        with path() as reports, settings.kernel_storage(storage), settings.solver(logdet="lanczos"):
            found.append(answer())
        assert {report.solver for report in reports} <= {"exact", "rangeformer"}
        noted = [any("recomputed at every product" in note for note in report.notes) for report in reports]
        assert noted == [storage == "tiles"] * len(reports)
    return found[0], found[1]


@paths
@kernels
def test_value_and_gradient_are_those_of_the_dense_matrix(kernel: str, path: Any) -> None:
    (value, gradient), (expected, expected_gradient) = both(path, build(kernel).loss_and_gradient)
    assert value == pytest.approx(expected, rel=1e-8, abs=1e-8)
    assert relative(gradient, expected_gradient) < 1e-7


@paths
def test_second_derivatives_are_those_of_the_dense_matrix(path: Any) -> None:
    found, expected = both(path, lambda: hessian_row_sums(build("ard", n=110)))
    assert relative(found, expected) < 1e-8


@pytest.mark.parametrize("fast", [False, True], ids=["exact_variance", "fast_variance"])
@pytest.mark.parametrize("kernel", ["ard", "nested"])
def test_predictions_are_those_of_the_dense_matrix(kernel: str, fast: bool) -> None:
    problem = build(kernel)

    def predict() -> Tensor:
        with torch.no_grad(), gpytorch.settings.fast_pred_var(fast):
            prediction = problem.predict()
            return torch.cat([prediction.mean, prediction.variance])

    found, expected = both(lambda: rangeformer_path(tolerance=1e-5), predict)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_many_right_hand_sides_do_not_make_a_dense_matrix_of_one_that_is_recomputed() -> None:
    problem = build("ard", n=200)
    with rangeformer_path() as reports, settings.kernel_storage("tiles"), torch.no_grad():
        problem.predict(data(5, m=60)[2]).variance  # noqa: B018
    assert {report.solver for report in reports} == {"rangeformer"}


@pytest.mark.parametrize("storage", ["dense", "tiles"])
@pytest.mark.parametrize("wanted", ["hyperparameters", "targets"])
def test_gradients_through_a_solve_are_gpytorchs(storage: str, wanted: str) -> None:
    """The predictive mean as a function of what it was fitted with: caches are not detached."""
    problem = build("ard")
    leaves = list(problem.model.parameters())
    if wanted == "targets":
        problem.y = problem.y.clone().requires_grad_()
        problem.model.set_train_data(problem.x, problem.y, strict=False)
        leaves = [problem.y]

    def gradient() -> Tensor:
        with gpytorch.settings.detach_test_caches(False):
            mean = problem.predict().mean
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean.square().sum(), leaves)])

    expected = gradient()
    with rangeformer_path(tolerance=1e-9), settings.kernel_storage(storage):
        found = gradient()
        report = last_report()
    assert report is not None
    assert (report.operation, report.solver) == ("solve", "rangeformer")
    assert relative(found, expected) < 1e-6


def test_gradients_of_gradients_through_a_solve_are_those_of_the_dense_matrix() -> None:
    problem = build("ard", n=110)
    leaves = list(problem.model.parameters())

    def curvature() -> Tensor:
        with gpytorch.settings.detach_test_caches(False):
            mean = problem.predict().mean
        gradient = torch.autograd.grad(mean.sum(), leaves, create_graph=True)
        row = torch.autograd.grad(torch.cat([g.reshape(-1) for g in gradient]).sum(), leaves)
        return torch.cat([g.reshape(-1) for g in row])

    found, expected = both(lambda: rangeformer_path(tolerance=1e-10), curvature)
    assert relative(found, expected) < 1e-6


def step(problem: Problem) -> None:
    problem.loss().backward()
    assert float(flat_gradient(problem.model).norm()) > 0


def test_a_training_step_holds_far_less_than_the_matrix() -> None:
    """At n = 3000, float32: rank 20 and 9 columns are 1 % of K each, and there are some dozens of them."""
    problem = build("ard", n=3000, dtype=torch.float32)
    with rangeformer_path(tolerance=0.05, rank=20, probes=8), settings.solver(logdet="quadrature"):
        with settings.kernel_storage("tiles"):
            recomputed = peak(lambda: step(problem)) * 6000**2 / 3000**2
        assert latest().solver == "rangeformer"
        with settings.kernel_storage("dense"):
            dense = peak(lambda: step(problem)) * 6000**2 / 3000**2
    assert recomputed < 0.25
    assert dense > 1


def latest() -> SolveReport:
    report = last_report()
    assert report is not None
    return report


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the free bytes, and has small systems checked as well."""
    monkeypatch.setattr(free_memory, "CHECKED_FROM", 1)
    return lambda free: monkeypatch.setattr(free_memory, "free_bytes", lambda device: free)


def test_auto_holds_what_fits_and_recomputes_what_does_not_and_says_so(scarce: Callable[[int], None]) -> None:
    problem = build("ard", n=600)  # 2.75 MiB in float64
    for free, recomputed in ((64 * MIB, False), (2 * MIB, True), (64 * MIB, False)):
        scarce(free)
        with rangeformer_path(tolerance=1e-3, rank=20, probes=2):
            problem.loss()
        notes = latest().notes
        assert any("K is recomputed at every product" in note for note in notes) is recomputed
        assert any("0.00195 GiB free" in note for note in notes) is recomputed
        assert latest().solver == "rangeformer"


def test_dense_where_it_does_not_fit_is_refused_before_anything_is_allocated(scarce: Callable[[int], None]) -> None:
    problem = build("ard", n=600)
    scarce(2 * MIB)
    with (
        rangeformer_path(rank=20, probes=2),
        settings.kernel_storage("dense"),
        pytest.raises(InsufficientMemoryError, match=r"K of n = 600.*GiB needed.*largest n.*kernel_storage\('tiles'\)"),
    ):
        problem.loss()
    with rangeformer_path(rank=20, probes=2), settings.kernel_storage("dense"):
        scarce(64 * MIB)
        problem.loss()


def test_the_exact_path_is_refused_where_its_factor_does_not_fit(scarce: Callable[[int], None]) -> None:
    problem = build("ard", n=600)
    scarce(4 * MIB)
    with rangeformer_path(), settings.solver(Exact()), pytest.raises(InsufficientMemoryError) as caught:
        problem.loss()
    message = str(caught.value)
    assert "Cholesky factor" in message
    assert "settings.solver(Exact()) asks" in message
    assert "largest n" in message


def test_many_columns_are_solved_exactly_only_where_that_fits(scarce: Callable[[int], None]) -> None:
    """60 columns of n = 600, more than n / 32: a covariance of test points, say."""
    problem = build("ard", n=600)
    covariance = problem.model.likelihood(problem.model(problem.model.train_inputs[0])).lazy_covariance_matrix
    columns = torch.randn(600, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {}
    for free, solver in ((64 * MIB, "exact"), (9 * MIB, "rangeformer")):
        scarce(free)
        with rangeformer_path(tolerance=1e-6, rank=50), settings.solver(prediction_tolerance=1e-6), torch.no_grad():
            found[solver] = covariance.solve(columns)
        assert latest().solver == solver
    assert relative(found["rangeformer"], found["exact"]) < 1e-4


def test_a_root_is_refused_where_it_does_not_fit_beside_the_factor(scarce: Callable[[int], None]) -> None:
    prepared = Exact().prepare(LinearSystem(torch.eye(600), torch.ones(600)))
    scarce(2 * MIB)
    with pytest.raises(InsufficientMemoryError, match=r"root of the inverse.*largest n.*fast_pred_var"):
        prepared.inv_root()


def test_a_solve_that_cannot_certify_is_explained_where_the_exact_path_does_not_fit(
    scarce: Callable[[int], None],
) -> None:
    problem = build("ard", n=600)
    scarce(4 * MIB)
    with (
        rangeformer_path(tolerance=1e-9, rank=2, probes=2),
        settings.solver(max_passes=2),
        settings.kernel_storage("tiles"),
        pytest.raises(InsufficientMemoryError, match=r"raise rank, max_passes or tolerance of settings\.solver"),
    ):
        problem.loss()


def test_where_it_fits_the_exact_path_forms_the_matrix_and_says_so() -> None:
    problem = build("ard", n=200)
    with (
        rangeformer_path(tolerance=1e-9, rank=2, probes=2),
        settings.solver(max_passes=2),
        settings.kernel_storage("tiles"),
        pytest.warns(FallbackWarning),
    ):
        problem.loss()
    assert latest().solver == "exact"
    assert "the exact path formed K as a dense matrix" in latest().notes


@pytest.mark.parametrize(
    ("matrices", "columns", "itemsize"), [(1.0, 0, 4), (2.0, 300, 8), (0.25, 3000, 4), (0.0, 500, 8)]
)
def test_the_largest_n_is_the_last_that_fits(matrices: float, columns: int, itemsize: int) -> None:
    for free in (10 * MIB, 2**30, 3 * 2**40):
        demand = Demand(matrices, columns, itemsize)
        largest = demand.largest(free)
        assert demand.shortage(largest, free) is None
        assert f"largest n that fits is {largest}" in str(demand.shortage(largest + 1, free))


def test_free_memory_is_known_here_and_unknown_where_nothing_says_so() -> None:
    free = free_bytes(torch.device("cpu"))
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert free is not None
    assert 0 < free <= total
    assert free_bytes(torch.device("meta")) is None
    assert Demand(1.0, 0, 8).shortage(10**9, None) is None


def test_the_least_of_the_control_groups_counts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may use 3 GiB, of which 2 are used, a quarter of that by file pages that can be given up."""
    files = {
        "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   8388608 kB",
        "/proc/self/cgroup": "0::/a/b",
        "/sys/fs/cgroup/a/b/memory.max": "max",
        "/sys/fs/cgroup/a/b/memory.current": "7",
        "/sys/fs/cgroup/a/memory.max": str(3 * 2**30),
        "/sys/fs/cgroup/a/memory.current": str(2 * 2**30),
        "/sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {2**29}",
    }
    monkeypatch.setattr(free_memory, "_lines", lambda path: files.get(str(path), "").splitlines())
    assert free_bytes(torch.device("cpu")) == 3 * 2**29
    files["/proc/meminfo"] = "MemAvailable: 1048576 kB"
    assert free_bytes(torch.device("cpu")) == 2**30
    files["/proc/self/cgroup"] = "5:cpu:/x\n4:memory:/a"
    files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = str(2**29)
    files["/sys/fs/cgroup/memory/memory.usage_in_bytes"] = str(2**28)
    assert free_bytes(torch.device("cpu")) == 2**28


def test_a_kernel_that_cannot_be_recomputed_stays_dense_and_the_report_says_so() -> None:
    x, y, _ = data(150)
    kernel = LinearKernel() + ScaleKernel(RBFKernel())
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = GP(x, y, likelihood, gpytorch.means.ConstantMean(), kernel).double()
    with rangeformer_path(), settings.kernel_storage("tiles"):
        likelihood(model(x)).log_prob(y)
    assert any("K is held as a dense matrix: only single kernels" in note for note in latest().notes)


def test_a_model_with_caches_of_a_recomputed_matrix_can_be_saved_and_goes_on_predicting() -> None:
    """Unlike one with a dense matrix, it needs this package to be loaded."""
    problem = build("ard")
    buffer = io.BytesIO()
    with rangeformer_path(), settings.kernel_storage("tiles"), torch.no_grad():
        expected = problem.predict().mean
        torch.save(problem.model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        loaded_operator = loaded.prediction_strategy.train_prior_dist.lazy_covariance_matrix.evaluate_kernel()
        assert torch.equal(loaded(problem.test_x).mean, expected)
    assert loaded_operator.fused.share is ALONE


def operator() -> tuple[Any, Tensor]:
    """Recomputed, and the same dense; in the graph of one parameter."""
    kernel = ScaleKernel(MaternKernel(1.5)).double()
    x = data(130)[0]
    with settings.rangeformer(), settings.kernel_storage("tiles"), gpytorch.settings.lazily_evaluate_kernels(False):
        recomputed = kernel(x)
    assert isinstance(recomputed, FusedLinearOperator)
    return recomputed, kernel(x).to_dense().detach()


@pytest.mark.parametrize("shape", [(130,), (130, 3), (2, 130, 3)])
def test_gpytorchs_own_products_and_their_gradients_work(shape: tuple[int, ...]) -> None:
    recomputed, dense = operator()
    rhs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    product = recomputed @ rhs
    torch.testing.assert_close(product, dense @ rhs)
    (found,) = torch.autograd.grad(product.square().sum(), rhs, retain_graph=True)
    torch.testing.assert_close(found, 2 * dense @ (dense @ rhs))
    outputscale = recomputed.fused.arguments[0]
    (found,) = torch.autograd.grad(product.square().sum(), outputscale)
    torch.testing.assert_close(found, 2 * product.square().sum() / outputscale)


def test_entries_diagonals_and_transposes_are_those_of_the_dense_matrix() -> None:
    recomputed, dense = operator()
    assert (recomputed.shape, recomputed.dtype, recomputed.device) == (dense.shape, dense.dtype, dense.device)
    torch.testing.assert_close(recomputed.diagonal(), dense.diagonal())
    torch.testing.assert_close(recomputed[3:7, 5:9].to_dense(), dense[3:7, 5:9])
    torch.testing.assert_close(recomputed[torch.tensor([1, 2]), torch.tensor([5, 7])], dense[[1, 2], [5, 7]])
    torch.testing.assert_close(recomputed.mT.to_dense(), dense)


def test_with_the_flag_off_inside_an_operator_that_was_made_with_it_gpytorch_answers() -> None:
    recomputed, dense = operator()
    rhs = torch.randn(130, 1, dtype=torch.float64)
    system = dense + 0.1 * torch.eye(130, dtype=torch.float64)
    with torch.no_grad():
        found = recomputed.add_diagonal(torch.tensor(0.1, dtype=torch.float64)).solve(rhs)
    torch.testing.assert_close(found, torch.linalg.solve(system, rhs), rtol=1e-4, atol=1e-4)


def test_models_keep_their_memories_where_nothing_is_held() -> None:
    problems = [build("ard", n=300, seed=seed) for seed in (0, 1)]
    iterations = []
    with rangeformer_path(tolerance=1e-3, rank=5), settings.kernel_storage("tiles"), collect_reports() as reports:
        for problem in itertools.chain(problems, problems):
            problem.loss()
    iterations = [report.iterations for report in reports]
    assert all(math.isfinite(report.residual) for report in reports)
    assert max(iterations[2:]) < min(iterations[:2])
