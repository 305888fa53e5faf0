"""What a caller can learn about a call: reports, collections, the printed line, warnings, and intervals that hold."""

from __future__ import annotations

import dataclasses
import logging
import math
import subprocess
import sys
import threading
import warnings

import gpytorch
import pytest
import torch

import gp_rangeformer
from gp_rangeformer import FallbackWarning, collect_reports, last_report, settings
from gp_rangeformer.report import FAILURES, GradientError, HyperparameterGradient, ReportCollection, SolveReport
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import added_diagonal, build, dense_covariance, exact_path, rangeformer_path

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

PATHS = {"exact": exact_path, "rangeformer": rangeformer_path}
paths = pytest.mark.parametrize("path", PATHS)


def test_before_the_first_call_the_report_says_where_the_flag_is_on() -> None:
    script = """
import gp_rangeformer, gpytorch, torch
from gp_rangeformer.system.reason import Reason
assert gp_rangeformer.memory_bytes() == 0
report = gp_rangeformer.last_report()
assert not report
assert (report.reason, report.n, report.fell_back, report.mll) == (Reason.NOT_ASKED, 0, False, None)
x = torch.linspace(0, 1, 120)
covariance = gpytorch.kernels.RBFKernel()(x).evaluate_kernel().add_jitter(0.1)
covariance.inv_quad_logdet(x[:, None], logdet=True)
print(gp_rangeformer.last_report().summary())
with gp_rangeformer.settings.rangeformer():
    covariance.inv_quad_logdet(x[:, None], logdet=True)
assert gp_rangeformer.last_report()
print(gp_rangeformer.last_report().summary())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    forgotten, asked = run.stdout.splitlines()
    assert forgotten == Reason.NOT_ASKED.value
    assert "inside `with settings.rangeformer():`" in forgotten
    assert asked.startswith("inv_quad_logdet n=120 -> ")


def test_the_last_report_is_that_of_the_last_call_with_the_flag_on() -> None:
    problem = build()
    with exact_path() as reports:
        problem.loss()
        problem.predict().mean.sum()
    assert last_report() is reports[-1]
    assert reports[-1].operation == "solve"
    problem.loss()
    assert last_report() is reports[-1]


def test_collections_nest_and_count() -> None:
    problem = build()
    with exact_path(), collect_reports() as outer:
        problem.loss()
        with collect_reports() as inner, gpytorch.settings.fast_pred_var(), torch.no_grad():
            problem.predict().variance.sum()
        problem.loss()
    assert [report.operation for report in inner] == ["solve", "root_inv_decomposition"]
    assert len(outer) == 4
    assert list(outer)[1:3] == list(inner)
    assert outer.counts == {
        ("inv_quad_logdet", "exact", "EXACT_SMALL"): 2,
        ("solve", "exact", "EXACT_SMALL"): 1,
        ("root_inv_decomposition", "exact", "EXACT_SMALL"): 1,
    }
    assert outer.fallbacks == 0
    problem.loss()
    assert len(outer) == 4


def test_two_empty_collections_end_separately() -> None:
    with collect_reports() as first:
        with collect_reports():
            pass
        with exact_path():
            build().loss()
    assert len(first) == 1


def test_a_collection_sees_other_threads() -> None:
    with exact_path() as reports:
        thread = threading.Thread(target=lambda: build().loss())
        thread.start()
        thread.join()
    assert len(reports) == 1


def test_a_collection_of_one_thread_does_not() -> None:
    with exact_path() as everybodys, collect_reports(own_thread=True) as own:
        thread = threading.Thread(target=lambda: build().loss())
        thread.start()
        thread.join()
        assert (len(everybodys), len(own)) == (1, 0)
        build().loss()
    assert (len(everybodys), len(own)) == (2, 1)


def test_a_collection_ends_with_an_error() -> None:
    with pytest.raises(KeyError), collect_reports() as reports:
        raise KeyError
    with exact_path():
        build().loss()
    assert len(reports) == 0


@paths
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_a_training_report_describes_its_call(batch: tuple[int, ...], path: str) -> None:
    problem = build("matern12", batch=batch)
    with PATHS[path]() as reports:
        loss = problem.loss()
    (report,) = reports
    assert (report.operation, report.solver, report.n, report.batch_shape) == ("inv_quad_logdet", path, 150, batch)
    assert (report.dtype, report.device, report.columns) == ("float64", "cpu", 1)
    assert report.seconds > 0
    assert report.mll is not None
    assert -report.mll / 150 == pytest.approx(loss.item(), rel=1e-9)
    assert report.passes >= 1
    if path == "rangeformer":
        assert report.iterations > 1
        assert report.columns_multiplied >= 17 * report.iterations
        assert 0 < report.residual <= 1e-7
        assert report.logdet_level == 0.95
    else:
        assert report.iterations == 0
        assert report.residual < 1e-10
        assert report.logdet_statistical is None


@paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["rbf", "matern12", "periodic", "sum"])
def test_rigorous_intervals_contain_the_exact_values(kernel: str, dtype: torch.dtype, path: str) -> None:
    problem = build(kernel, dtype=dtype)
    arguments = {} if path == "exact" else {"tolerance": 0.01}
    with PATHS[path](**arguments) as reports:
        problem.loss()
    mean, covariance = (tensor.detach().double() for tensor in dense_covariance(problem))
    difference = (problem.y.double() - mean).unsqueeze(-1)
    logdet = float(torch.logdet(covariance))
    quadratic = float((difference * torch.linalg.solve(covariance, difference)).sum())
    mll = -0.5 * (quadratic + logdet + 150 * math.log(2 * math.pi))
    (report,) = reports
    assert report.solver == path
    assert report.logdet_interval is not None
    assert report.mll_interval is not None
    slack = 1e-8 if dtype == torch.float64 else 1e-4  # of this reference: the matrix itself is rounded on the way
    for interval, exact, value in (
        (report.logdet_interval, logdet, report.logdet),
        (report.mll_interval, mll, report.mll),
    ):
        assert interval.lower - slack <= exact <= interval.upper + slack
        assert value is not None
        assert interval.lower - slack <= value <= interval.upper + slack


@paths
def test_a_batch_sums_its_elements(path: str) -> None:
    batch = build("matern12", batch=(3,))
    # A fused kernel's matrix is symmetric to the last bit, which is known of no other.
    with PATHS[path]() as reports, settings.fused_kernels(False):
        batch.loss()
        gp_rangeformer.clear_memory()
        marginal = batch.likelihood(batch.model(batch.x))
        covariance = marginal.lazy_covariance_matrix.evaluate_kernel()
        difference = batch.y - marginal.mean
        kernel, noise = covariance._linear_op.to_dense(), covariance._diag_tensor._diagonal()
        for element in range(3):
            single = added_diagonal(kernel[element], noise[element])
            single.inv_quad_logdet(difference[element].unsqueeze(-1), logdet=True)
    total, *singles = reports
    assert [single.batch_shape for single in singles] == [()] * 3
    for name in ("logdet", "mll", "iterations"):
        assert getattr(total, name) == pytest.approx(sum(getattr(single, name) for single in singles), rel=1e-9), name
    for name in ("logdet_interval", "mll_interval", "logdet_statistical", "mll_statistical"):
        whole = getattr(total, name)
        parts = [getattr(single, name) for single in singles]
        if whole is None:
            assert parts == [None] * 3
            continue
        assert whole.lower == pytest.approx(sum(part.lower for part in parts), rel=1e-9), name
        assert whole.upper == pytest.approx(sum(part.upper for part in parts), rel=1e-9), name
    assert total.residual == pytest.approx(max(single.residual for single in singles), rel=1e-6)


def every_kind_of_report() -> list[SolveReport]:
    problem, small = build("matern12"), build(n=20)
    with rangeformer_path(tolerance=0.01) as reports, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        problem.loss()
        with gpytorch.settings.fast_pred_var():
            problem.predict().variance.sum()
        with settings.solver(max_passes=1, neighbours=0):
            build("matern12").loss()
        with settings.exact_size(100):
            small.loss()
    with exact_path() as more:
        build(dtype=torch.float32, batch=(2,)).loss()
    return [*reports, *more]


def test_a_summary_is_one_line_that_names_operation_size_solver_and_reason() -> None:
    reports = every_kind_of_report()
    assert {report.solver for report in reports} == {"rangeformer", "exact", "gpytorch"}
    for report in reports:
        line = report.summary()
        assert "\n" not in line
        assert line.startswith(f"{report.operation} n={report.n} -> {report.solver}")
        assert (report.reason.value in line) == (report.reason is not Reason.CONVERGED)


def test_a_report_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        every_kind_of_report()[0].solver = "other"  # type: ignore[misc]


def test_a_collection_says_who_answered_how_often_and_why() -> None:
    first = SolveReport("solve", "exact", Reason.EXACT_SMALL, n=150, passes=2, residual=1e-9, seconds=0.25)
    worse = dataclasses.replace(first, n=170, solver="rangeformer", reason=Reason.CONVERGED, residual=3e-3)
    failed = dataclasses.replace(first, operation="inv_quad_logdet", reason=Reason.MAX_PASSES)
    declined = SolveReport("solve", "gpytorch", Reason.TOO_SMALL, n=7, residual=1.0)
    collection = ReportCollection([failed, first, worse, declined, first])
    assert (collection.passes, collection.seconds, collection.worst) == (8, 1.0, worse)
    total, *counts = collection.summary().splitlines()
    assert total == "5 calls, 1 fell back; 8 passes, 1.000 s; worst residual 3.0e-03 (solve n=170)"
    assert counts == [
        f"2 x solve -> exact: {Reason.EXACT_SMALL.value}",
        f"1 x inv_quad_logdet -> exact: {Reason.MAX_PASSES.value}",
        f"1 x solve -> rangeformer: {Reason.CONVERGED.value}",
        f"1 x solve -> gpytorch: {Reason.TOO_SMALL.value}",
    ]
    assert str(collection) == repr(collection) == "<ReportCollection: 5 calls, 1 fell back; 8 passes, 1.000 s>"
    assert repr(ReportCollection([first])).startswith("<ReportCollection: 1 call, 0 fell back")


def test_a_residual_that_is_nan_is_the_worst() -> None:
    known = SolveReport("solve", "exact", Reason.EXACT_SMALL, n=150, residual=1e-3)
    unknown = dataclasses.replace(known, residual=math.nan)
    assert ReportCollection([known, unknown, known]).worst is unknown
    assert "worst residual nan" in ReportCollection([unknown, known]).summary()


def test_a_collection_of_nothing_says_where_the_flag_is_on() -> None:
    problem = build()
    with collect_reports() as reports:
        problem.loss()
    assert reports.summary() == Reason.NOT_ASKED.value
    assert reports.worst is None
    declined = ReportCollection([SolveReport("solve", "gpytorch", Reason.TOO_SMALL, n=7)])
    assert "residual" not in declined.summary()


def test_a_logger_at_debug_level_gets_one_line_a_call(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="gp_rangeformer"), exact_path():
        build().loss()
    (line,) = [record.getMessage() for record in caplog.records if "inv_quad_logdet" in record.getMessage()]
    assert line.startswith("inv_quad_logdet n=150 -> exact")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="gp_rangeformer"), exact_path():
        build().loss()
    assert not [record for record in caplog.records if "inv_quad_logdet" in record.getMessage()]


def test_a_real_fallback_warns_counts_and_answers() -> None:
    problem = build("matern12")
    expected = problem.loss().item()
    message = r"inv_quad_logdet at n=150 .*max_passes.*raise rank in settings\.solver"
    with (
        rangeformer_path(tolerance=0.01) as reports,
        settings.solver(max_passes=1, neighbours=0),
        pytest.warns(FallbackWarning, match=message),
    ):
        found = problem.loss().item()
    (report,) = reports
    assert (report.solver, report.reason, report.fell_back) == ("exact", Reason.MAX_PASSES, True)
    assert reports.fallbacks == 1
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_failing_model_pauses_then_tries_again() -> None:
    problem = build("matern12")
    with rangeformer_path(tolerance=0.01) as reports, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with settings.solver(max_passes=1, neighbours=0):
            problem.loss()
        for _ in range(3):
            problem.loss()
    reasons = [report.reason for report in reports]
    assert reasons[:2] == [Reason.MAX_PASSES, Reason.PAUSED]
    assert reasons[-1] is Reason.CONVERGED


def test_only_failures_count_as_fallbacks() -> None:
    report = every_kind_of_report()[0]
    for reason in Reason:
        assert dataclasses.replace(report, reason=reason).fell_back == (reason in FAILURES)
    assert Reason.EXACT_SMALL not in FAILURES
    assert Reason.TOO_SMALL not in FAILURES


def test_every_reason_is_a_sentence() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason)
    for reason in Reason:
        assert len(reason.value) > 20


def test_backward_solves_are_reported_too() -> None:
    problem = build("matern12")
    with rangeformer_path() as reports, gpytorch.settings.detach_test_caches(False):
        mean = problem.predict().mean.sum()
        forward = len(reports)
        mean.backward()
    backward = list(reports)[forward:]
    assert [(report.operation, report.solver) for report in backward] == [("solve", "rangeformer")]
    assert backward[0].passes >= 1


@pytest.mark.parametrize(("noise", "rank", "said"), [(1e-3, 10, True), (0.1, 100, False)])
def test_an_uncertain_log_determinant_is_said_to_be_one(noise: float, rank: int, said: bool) -> None:
    problem = build("rbf", n=200)
    problem.likelihood.noise = noise
    with rangeformer_path(tolerance=0.01, rank=rank) as reports, settings.solver(neighbours=0):
        problem.loss()
    (report,) = reports
    assert report.logdet_statistical is not None
    assert (report.logdet_statistical.width > 2 * 0.01 * 200) is said
    assert any("log determinant uncertain: +- 0." in note for note in report.notes) is said
    assert ("uncertain" in report.summary()) is said


def test_the_error_of_a_gradient_of_any_size_is_a_number() -> None:
    """Inputs times 1e160: squares of what their length-scale is worth overflow."""
    entry = HyperparameterGradient("lengthscale", 1e170, 1e169)
    error = GradientError((entry, dataclasses.replace(entry, name="noise")))
    assert error.relative == pytest.approx(0.1)
    assert error.excess(0.05, 1.0) == pytest.approx(2.0)
