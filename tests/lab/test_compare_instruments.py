"""What is counted and timed in a comparison: passes, seconds, memory."""

import contextlib
import math

import gpytorch
import pytest
import torch
from linear_operator.operators import AddedDiagLinearOperator, DenseLinearOperator

from gp_rangeformer.lab.compare import instruments
from gp_rangeformer.lab.compare.instruments import PeakMemory, count_products
from gp_rangeformer.lab.compare.result import SolverResult, Step
from gp_rangeformer.lab.models import build_model
from tests.lab.comparisons import arm, result_of


def test_passes_are_counted_for_every_iterative_solver(comparison):
    for name in ("cg", "rangeformer"):
        summary = result_of(comparison, name).summary()
        assert summary["passes_per_step"] > 1
        assert summary["iterations_per_step"] > 0
        assert summary["columns_per_step"] > summary["passes_per_step"]
    assert result_of(comparison, "exact").summary()["passes_per_step"] == 1
    assert result_of(comparison, "cholesky").summary()["passes_per_step"] is None


def test_predictions_seconds_and_memory_are_measured_for_every_solver(comparison):
    for result in comparison.results:
        summary = result.summary()
        assert 0.2 < summary["rmse"] < 1.2
        assert math.isfinite(summary["nll"])
        assert summary["seconds_total"] >= summary["seconds_first"] > 0
        assert summary["seconds_per_step"] > 0
        assert summary["prediction_seconds"] > 0
        if summary["peak_memory"] is not None:
            assert summary["peak_memory_with_prediction"] >= summary["peak_memory"] >= 0
        assert result.predictions is None, "kept for one-dimensional data alone"


def test_seconds_per_step_leave_the_first_three_steps_and_the_final_evaluation_out():
    result = SolverResult("x", "cg", "", "float32")
    seconds = [9.0, 9.0, 9.0, 1.0, 2.0, 3.0]
    result.steps = [Step(i, 0.0, s, {}) for i, s in enumerate(seconds)] + [Step(6, 0.0, 50.0, {}, updated=False)]
    summary = result.summary()
    assert summary["seconds_per_step"] == 2.0
    assert summary["seconds_first"] == 9.0
    assert summary["seconds_total"] == 33.0


def test_peak_memory_sees_a_matrix_that_is_gone_again():
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    if memory.peak() is None:
        pytest.skip("this platform has no /proc/self/clear_refs")
    torch.ones(64 * 2**20 // 4)
    assert 60 < (memory.peak() or 0) < 200


def test_peak_memory_does_not_fall_where_the_kernels_counters_do(monkeypatch):
    readings = iter([100.0, 130.0, 129.9])
    monkeypatch.setattr(instruments, "_status", lambda field: next(readings))
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    if memory._held is None:
        pytest.skip("this platform has no /proc/self/clear_refs")
    assert [memory.peak(), memory.peak()] == [30.0, 30.0]


def test_counting_agrees_with_the_products_of_the_dense_matrix(monkeypatch):
    data = arm(200).to(torch.float32)
    calls = []
    original = DenseLinearOperator._matmul

    def counted(self, rhs):
        if self.shape == (200, 200):
            calls.append(rhs.shape[-1])
        return original(self, rhs)

    monkeypatch.setattr(DenseLinearOperator, "_matmul", counted)
    model, likelihood = build_model(data, "matern32")
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    with count_products(200) as count, gpytorch.settings.max_cholesky_size(0):
        (-mll(model(data.train_x), data.train_y)).backward()  # type: ignore[operator]
        taken = count.take()
    assert taken.products == len(calls) > 2
    assert taken.columns == sum(calls)
    assert taken.iterations == taken.products - 1
    assert count.products == 0


def test_counting_leaves_no_trace_even_after_an_error():
    before = dict(vars(AddedDiagLinearOperator))
    with contextlib.suppress(RuntimeError), count_products(10):
        assert dict(vars(AddedDiagLinearOperator)) != before
        raise RuntimeError
    assert dict(vars(AddedDiagLinearOperator)) == before
