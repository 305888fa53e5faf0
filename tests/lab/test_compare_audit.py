"""The exact float64 values and gradients that every solver is held against."""

import gpytorch
import pytest

from gp_rangeformer.lab.compare import Comparison, Options, compare
from gp_rangeformer.lab.compare import solvers as solvers_module
from gp_rangeformer.lab.compare.audit import ExactEvaluator, gradient_vector, relative_error, snapshot
from gp_rangeformer.lab.compare.result import Audit, SolverResult, Step
from gp_rangeformer.lab.compare.tables import tables
from gp_rangeformer.lab.models import build_model
from tests.lab.comparisons import STEPS, arm, result_of


def test_the_exact_solver_reproduces_the_reference(comparison):
    exact, reference = result_of(comparison, "exact"), result_of(comparison, "reference")
    assert exact.difference == pytest.approx(0, abs=1e-3)
    assert len(exact.steps) == len(reference.steps) == STEPS + 1
    for step, other in zip(exact.steps, reference.steps, strict=True):
        assert step.value == pytest.approx(other.value, abs=1e-3)
    assert reference.steps[-1].value > reference.steps[0].value + 0.05, "nothing was trained"


def test_the_reference_is_float64_and_agrees_with_the_other_exact_path(comparison):
    assert result_of(comparison, "reference").dtype == "float64"
    check = comparison.reference_check
    assert check is not None
    assert abs(check.value_difference) < 1e-9
    assert check.gradient_difference < 1e-9


def test_above_its_size_the_reference_is_the_closed_form_checked_against_gpytorch(monkeypatch):
    monkeypatch.setattr(solvers_module, "REFERENCE_CHOLESKY_SIZE", 100)
    comparison = compare(arm(150), (), Options(steps=1))
    reference = result_of(comparison, "reference")
    assert reference.base == "exact"
    assert reference.steps[0].answered_by == "exact"
    assert reference.exact_value == reference.steps[-1].value
    check = comparison.reference_check
    assert check is not None
    assert check.seconds is not None
    assert abs(check.value_difference) < 1e-9
    assert 0 <= check.gradient_difference < 1e-9


def test_rangeformer_intervals_contain_the_exact_value_at_every_audited_step(comparison):
    result = result_of(comparison, "rangeformer")
    assert [audit.step for audit in result.audits] == list(range(STEPS + 1))
    assert {step.answered_by for step in result.steps} == {"rangeformer"}
    for audit in result.audits:
        assert audit.interval is not None
        assert audit.interval[0] <= audit.exact_value <= audit.interval[1]
    summary = result.summary()
    assert summary["rigorous_containing"] == summary["rigorous_checked"] == STEPS + 1
    assert summary["statistical_checked"] == STEPS + 1


def test_intervals_that_miss_the_exact_value_are_counted_as_missing():
    result = SolverResult("x", "rangeformer", "", "float32")
    result.audits = [Audit(0, 1.0, 1.1, 0.0, (0.9, 1.2), (0.9, 1.05)), Audit(1, 1.0, 1.5, 0.0, (0.9, 1.2), None)]
    summary = result.summary()
    assert (summary["rigorous_containing"], summary["rigorous_checked"]) == (1, 2)
    assert (summary["statistical_containing"], summary["statistical_checked"]) == (0, 1)
    assert summary["value_error_max"] == pytest.approx(0.5)


def test_gradient_errors_tell_exact_from_stochastic_solvers(comparison):
    for name, low, high in (("exact", 0, 1e-4), ("cholesky", 0, 1e-4), ("cg", 1e-3, 1), ("rangeformer", 1e-4, 0.3)):
        for when in ("start", "mean", "end"):
            assert low < result_of(comparison, name).summary()[f"gradient_error_{when}"] < high


def test_the_stated_gradient_error_stands_next_to_the_measured_one(comparison):
    result = result_of(comparison, "rangeformer")
    stated = [audit.stated for audit in result.audits if audit.stated is not None]
    assert stated == [step.stated for step in result.steps]
    assert all(0 < value < 0.3 for value in stated)
    summary = result.summary()
    assert summary["gradient_stated_mean"] == pytest.approx(sum(stated) / len(stated))
    # One draw of probes: its error is of the size of the standard error.
    assert 0.1 < summary["gradient_error_mean"] / summary["gradient_stated_mean"] < 4
    for name in ("exact", "cholesky", "cg"):
        assert result_of(comparison, name).summary()["gradient_stated_mean"] is None
    grid = tables(comparison)[1]
    column = grid.headers.index("gradient\nstated")
    assert grid.headers[column - 1] == "gradient\nmean"
    cells = {row[0].split("\n")[0]: row[column] for row in grid.rows}
    assert cells.pop("rangeformer").endswith("%")
    assert set(cells.values()) == {"-"}
    assert any(note.startswith("stated:") for note in grid.notes)
    (content,) = (item for item in comparison.to_json()["solvers"] if item["name"] == "rangeformer")
    assert content["audits"][0]["stated"] == content["steps"][0]["stated"] == stated[0]
    assert content["summary"]["gradient_stated_mean"] == summary["gradient_stated_mean"]


def test_records_of_a_file_from_before_errors_were_stated_still_load(comparison):
    (content,) = (item for item in comparison.to_json()["solvers"] if item["name"] == "rangeformer")
    for record in (*content["steps"], *content["audits"]):
        del record["stated"]
    result = SolverResult("rangeformer", "rangeformer", "", "float32")
    result.steps = [Step(**step) for step in content["steps"]]
    result.audits = [Audit(**audit) for audit in content["audits"]]
    old = Comparison(comparison.dataset, comparison.kernel, STEPS, "float32", 0, results=[result])
    assert result.summary()["gradient_stated_mean"] is None
    grid = tables(old)[1]
    assert grid.rows[0][grid.headers.index("gradient\nstated")] == "-"
    assert not any(note.startswith("stated:") for note in grid.notes)


def test_the_audit_evaluates_the_parameters_of_its_own_step(comparison):
    result = result_of(comparison, "cholesky")
    for audit in result.audits:
        assert audit.value_error < 1e-4
    values = [audit.exact_value for audit in result.audits]
    assert len(set(values)) == len(values)


def test_the_exact_evaluator_agrees_with_plain_gpytorch_in_float64():
    data = arm(120)
    model, likelihood = build_model(data, "rbf")
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    with gpytorch.settings.fast_computations(False, False, False):
        loss = -mll(model(data.train_x), data.train_y)  # type: ignore[operator]
        loss.backward()
    exact = ExactEvaluator(data, "rbf")(snapshot(model))
    assert exact.value == pytest.approx(-loss.item(), abs=1e-10)
    assert relative_error(exact.gradient, gradient_vector(model)) < 1e-8
