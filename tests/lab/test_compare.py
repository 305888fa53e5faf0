"""The comparison: every solver starts at the same point, is measured the same way, and cannot spoil the others."""

import contextlib
import dataclasses
import json
import math

import gpytorch
import pytest
import torch
from linear_operator.operators import AddedDiagLinearOperator, DenseLinearOperator
from linear_operator.utils.errors import NotPSDError

from gp_rangeformer import Direct, settings
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare import (
    DEFAULT_SOLVERS,
    Comparison,
    Options,
    SolverError,
    State,
    compare,
    instruments,
    parse_solvers,
    write_json,
)
from gp_rangeformer.lab.compare import solvers as solvers_module
from gp_rangeformer.lab.compare.audit import ExactEvaluator, gradient_vector, relative_error, snapshot
from gp_rangeformer.lab.compare.fit import fit_by_adam
from gp_rangeformer.lab.compare.instruments import PeakMemory, count_products
from gp_rangeformer.lab.compare.result import Audit, SolverResult, Step, plain
from gp_rangeformer.lab.compare.run import silent
from gp_rangeformer.lab.compare.tables import markdown, tables
from gp_rangeformer.lab.compare.training import Observer, Run, Schedule, predict, train
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import KERNELS, KernelError, build_model, default_kernel, hyperparameters, year_length

N, STEPS = 500, 6
SOLVERS = "exact,cholesky,cg,rangeformer"


def arm(n: int = N, n_test: int = 50) -> Dataset:
    return datasets.load("robot_arm", n=n, n_test=n_test)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """robot_arm, n = 500, every step audited, RangeFormer answering instead of the exact path."""
    return compare(arm(), parse_solvers(SOLVERS, min_size=300), Options(steps=STEPS, audit_every=1))


def result_of(comparison: Comparison, name: str) -> SolverResult:
    result = comparison.result(name)
    assert result is not None
    assert result.state is State.DONE, result.error
    return result


# --------------------------------------------------------------------------------------------------------------------
# What is measured


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


def test_every_solver_starts_at_the_same_point(comparison):
    start = result_of(comparison, "reference").steps[0].hyperparameters
    assert set(start) >= {"noise", "mean", "outputscale", "lengthscale[theta1]", "lengthscale[L4]"}
    for result in comparison.results:
        assert result.steps[0].hyperparameters == pytest.approx(start, rel=1e-6)


def test_fits_to_convergence_end_at_the_same_likelihood_above_adams(comparison):
    fits = compare(arm(), parse_solvers("rangeformer-fit,cholesky-lbfgs"), Options(steps=STEPS, reference_check=False))
    fitted, line_search = result_of(fits, "rangeformer-fit"), result_of(fits, "cholesky-lbfgs")
    assert fitted.exact_value is not None
    assert line_search.exact_value is not None
    # Small systems are solved exactly: what separates the two is where each stops, 1e-4 nats per point here.
    assert fitted.exact_value >= line_search.exact_value - 1e-3
    assert (fitted.difference or 0) > 0.1, "six steps of Adam must lie far below"
    for result in (fitted, line_search):
        start, end = result.steps[0], result.final
        # The mean is fitted from the first evaluation on.
        assert start.value >= result_of(comparison, "reference").steps[0].value - 1e-4
        assert end is not None
        (audit,) = result.audits
        assert (audit.step, audit.gradient_error) == (end.step, None)
        assert end.value == pytest.approx(audit.exact_value, abs=1e-4)
    # Better hyperparameters predict what they have not seen better, by either judge.
    scores = [(result.nll or 0, result.left_out_nll or 0) for result in (fitted, line_search)]
    adam = result_of(fits, "reference")
    assert adam.nll is not None
    assert adam.left_out_nll is not None
    assert all(test < adam.nll - 0.1 and left_out < adam.left_out_nll - 0.1 for test, left_out in scores)


def test_a_converged_fit_that_forecasts_less_well_is_explained(comparison):
    reference = SolverResult("reference", "cholesky", "", "float64", nll=-0.9)
    likelier = SolverResult("rangeformer-fit", "rangeformer-fit", "", "float64", nll=3.5, difference=0.04)
    told = dataclasses.replace(comparison, results=[reference, likelier])
    assert any("likelier by the training rows" in note for note in tables(told)[0].notes)
    likelier.nll = -1.0
    assert not any("likelier by the training rows" in note for note in tables(told)[0].notes)


def test_a_leave_one_out_score_that_fails_costs_nothing_else(monkeypatch):
    def fails(model: torch.nn.Module) -> None:
        raise NotPSDError("not positive definite")

    monkeypatch.setattr("gp_rangeformer.lab.compare.run.leave_one_out", fails)
    comparison = compare(arm(60), parse_solvers("cholesky"), Options(steps=1, reference_check=False))
    result = result_of(comparison, "cholesky")
    assert result.left_out_nll is None
    assert result.nll is not None
    assert result.warnings["leave-one-out: NotPSDError"] == 1


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


# --------------------------------------------------------------------------------------------------------------------
# Instruments and switches


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


def test_a_solver_is_switched_on_inside_its_context_only():
    rangeformer, cg, cholesky = parse_solvers("rangeformer:rank=50+predictor=previous,cg-tight,cholesky", min_size=77)
    before = settings.current()
    with settings.rangeformer():
        with cg.active():
            assert settings.rangeformer.off()
            assert gpytorch.settings.max_cholesky_size.value() == 0
            assert gpytorch.settings.cg_tolerance.value() == 0.01
        with cholesky.active():
            assert settings.rangeformer.off()
            assert not gpytorch.settings.fast_computations.log_prob.on()
    with rangeformer.active():
        assert settings.rangeformer.on()
        solver = settings.solver.value()
        assert (solver.rank, solver.predictor, settings.min_size.value()) == (50, "previous", 77)
    assert settings.current() == before


def test_the_networks_own_answers_are_compared_when_asked_for_and_need_not_be_right():
    assert "rangeformer-direct" not in DEFAULT_SOLVERS
    (direct,) = parse_solvers("rangeformer-direct")
    with direct.active():
        assert settings.rangeformer.on()
        assert isinstance(settings.solver.value(), Direct)
    result = result_of(compare(arm(300), (direct,), Options(steps=2, audit_every=1)), "rangeformer-direct")
    assert [step.answered_by for step in result.steps] == ["direct"] * 3
    assert all(audit.value_error > 1e-6 for audit in result.audits)
    assert all(step.residual is not None and step.interval is not None for step in result.steps)


def test_settings_are_parsed_in_their_own_type():
    (spec,) = parse_solvers(
        "rangeformer:rank=50+tolerance=0.05+logdet=lanczos+exact_line_search=off+min_size=9", min_size=7
    )
    expected = {"min_size": 9, "rank": 50, "tolerance": 0.05, "logdet": "lanczos", "exact_line_search": False}
    assert spec.overrides == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cholesky,newton", "no solver 'newton'; solvers: exact, cholesky, cg, cg-tight, rangeformer"),
        ("", "no solver named"),
        ("reference", "the reference always runs"),
        ("cg,cg", "named twice"),
        ("cg:rank=3", "only exact, rangeformer, rangeformer-fit and rangeformer-direct take settings"),
        ("rangeformer:ranks=3", "no setting 'ranks'; settings: .*rank"),
        ("rangeformer:rangeformer=off", "no setting 'rangeformer'"),
        ("rangeformer:rank", "not of the form"),
        ("rangeformer:rank=0", "at least 1"),
        ("rangeformer:rank=many", "rank=many"),
        ("rangeformer:predictor=oracle", "'extrapolate'"),
        ("rangeformer:exact_line_search=maybe", "write on or off"),
        ("rangeformer:logdet=exact", "logdet=exact is gone: name the solver exact"),
        ("rangeformer:mode=direct", "mode is gone: name the solver rangeformer-direct"),
        ("rangeformer:compiled_kernels=off", "compiled_kernels is gone: fused_kernels=tensors"),
        ("rangeformer:fused_kernels=on", "fused_kernels=on is gone: fused_kernels=compiled"),
        ("rangeformer:verbose=on", r"verbose is gone: .*setLevel\(logging\.DEBUG\)"),
    ],
)
def test_a_solver_that_cannot_be_is_refused_with_what_can(names, message):
    with pytest.raises(SolverError, match=message):
        parse_solvers(names)


def test_timing_only_names_must_be_among_the_solvers_and_train_by_adam():
    with pytest.raises(SolverError, match="not among the solvers"):
        parse_solvers("cg", timing_only="cholesky")
    with pytest.raises(SolverError, match="ends where it has converged"):
        parse_solvers("cg,rangeformer-fit", timing_only="rangeformer-fit")


# --------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_a_solver_that_raises_does_not_stop_the_others(monkeypatch):
    from linear_operator.operators import LinearOperator

    original = LinearOperator.cholesky

    def refuse(self, upper=False):
        if self.dtype == torch.float32 and self.shape[-1] == 150:
            raise NotPSDError("made up for this test")
        return original(self, upper)

    monkeypatch.setattr(LinearOperator, "cholesky", refuse)
    comparison = compare(arm(150), parse_solvers("cholesky,exact"), Options(steps=2))
    broken = comparison.result("cholesky")
    assert broken is not None
    assert broken.state is State.FAILED
    assert broken.error == "NotPSDError: made up for this test"
    assert broken.steps == []
    result_of(comparison, "exact")
    assert "cholesky failed at step 0: NotPSDError: made up for this test" in tables(comparison)[-1].to_markdown()


def test_a_value_that_is_not_a_number_ends_the_solver(monkeypatch):
    def spoil(solver: str, done: int, total: int, status: str) -> None:
        if solver == "exact" and done == 2:
            monkeypatch.setattr(torch.optim.Adam, "step", to_nan)

    def to_nan(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(math.nan)

    comparison = compare(arm(120), parse_solvers("exact"), Options(steps=5), observer=spoil)
    result = comparison.result("exact")
    assert result is not None
    assert result.state is State.FAILED
    assert result.error
    assert len(result.steps) == 3


def interrupt_at(name: str, step: int) -> Observer:
    def observer(solver: str, done: int, total: int, status: str) -> None:
        if solver == name and done == step:
            raise KeyboardInterrupt

    return observer


def test_an_interrupt_keeps_every_finished_solver_and_the_steps_done(tmp_path):
    path = tmp_path / "result.json"
    comparison = compare(
        arm(120),
        parse_solvers("cholesky,exact,cg"),
        Options(steps=5),
        observer=interrupt_at("exact", 3),
        save=lambda so_far: write_json(path, so_far.to_json()),
    )
    assert comparison.interrupted
    assert [result.state for result in comparison.results] == [State.DONE, State.DONE, State.INTERRUPTED]
    content = json.loads(path.read_text())
    assert content["interrupted"] is True
    assert [solver["name"] for solver in content["solvers"]] == ["reference", "cholesky", "exact"]
    assert [len(solver["steps"]) for solver in content["solvers"]] == [6, 6, 3]
    assert content["solvers"][2]["state"] == "interrupted"
    assert content["solvers"][2]["summary"]["seconds_per_step"] > 0
    assert "interrupted after 3 steps" in markdown(comparison, "machine", "command")
    assert torch.is_grad_enabled()


def test_timing_only_solvers_run_few_steps_and_take_no_part_in_the_comparison():
    options = Options(steps=4, timing_steps=2, audit_every=1)
    comparison = compare(arm(120), parse_solvers("exact,cg", timing_only="cg"), options)
    timed = result_of(comparison, "cg")
    assert len(timed.steps) == 2
    assert timed.rmse is timed.exact_value is timed.difference is None
    assert [audit.step for audit in timed.audits] == [0]
    assert timed.summary()["gradient_error_start"] > 0
    arrival, _, cost = tables(comparison)
    assert not any(row[0].startswith("cg") for row in arrival.rows)
    assert any(row[0] == "cg\ntiming only" for row in cost.rows)


def test_systems_that_the_plugin_declines_are_counted_with_their_reason():
    result = result_of(compare(arm(60), parse_solvers("rangeformer"), Options(steps=1)), "rangeformer")
    assert sum(result.declined.values()) == 2
    assert "exact_size" in next(iter(result.declined))
    assert result.steps[0].interval is None


# --------------------------------------------------------------------------------------------------------------------
# The result file and the tables


def test_the_result_file_has_every_step_by_name_and_no_number_json_cannot_say(comparison, tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, comparison.to_json())

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["dataset"]["n"] == N
    last = content["solvers"][-1]
    assert last["name"] == "rangeformer"
    assert last["overrides"] == {"min_size": 300}
    assert [step["step"] for step in last["steps"]] == list(range(STEPS + 1))
    assert last["steps"][0]["interval"][0] < last["steps"][0]["statistical"][0] < last["steps"][0]["statistical"][1]
    assert last["steps"][0]["hyperparameters"]["noise"] > 0
    assert len(last["audits"]) == STEPS + 1
    assert list(path.parent.iterdir()) == [path], "no temporary file stays"


def test_numbers_that_are_not_finite_are_written_as_null():
    assert plain({"a": (math.inf, 1.0), 2: math.nan, "b": State.DONE}) == {"a": [None, 1.0], "2": None, "b": "done"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_every_row_of_the_tables_has_a_cell_per_column_and_markdown_keeps_them(comparison):
    for grid in tables(comparison):
        assert {len(row) for row in grid.rows} == {len(grid.headers)}
        assert len(grid.rows) == len(comparison.results)
        lines = [line for line in grid.to_markdown().splitlines() if line.startswith("|")]
        assert {line.count("|") for line in lines} == {len(grid.headers) + 1}


def test_the_markdown_caption_says_how_to_get_the_tables_again(comparison):
    text = markdown(comparison, "a machine with 2 cores", "gp-rangeformer compare --n 500")
    for said in ("n = 500", "float32", "6 Adam steps", "seed 0", "a machine with 2 cores", "`gp-rangeformer compare"):
        assert said in text.splitlines()[-1]


# --------------------------------------------------------------------------------------------------------------------
# Models and fits


def test_the_year_of_the_co2_record_is_found_in_the_whole_of_it():
    data = datasets.load("co2")
    x = torch.cat([data.train_x, data.test_x])[:, 0]
    years = (2001 + 362 / 365) - (1958 + 87 / 365)  # 29 March 1958 to 29 December 2001
    assert year_length(data) == pytest.approx(float(x.max() - x.min()) / years, rel=1e-3)


@pytest.mark.parametrize(("n", "n_test"), [(300, 100), (600, 1), (40, 300)])
def test_the_year_of_the_co2_record_is_found_in_a_part_of_it(n, n_test):
    data = datasets.load("co2", n=n, n_test=n_test)
    week = year_length(data) * 7 / 365.25
    weeks = torch.cat([data.train_x, data.test_x])[:, 0].sort().values.diff() / week
    assert bool(((weeks - weeks.round()).abs() < 0.01 * weeks.clamp_min(1)).all()), "spacings are not whole weeks"
    assert float(weeks.min()) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "trend-seasonal"])
def test_every_kernel_gives_a_model_that_trains(kernel):
    data = arm(60)
    model, likelihood = build_model(data, kernel)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    (-mll(model(data.train_x), data.train_y)).backward()  # type: ignore[operator]
    assert gradient_vector(model).isfinite().all()
    names = hyperparameters(model, data.feature_names)
    assert len(names) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert all(math.isfinite(value) for value in names.values())


def test_the_seasonal_kernel_is_for_co2_alone():
    assert default_kernel(datasets.load("co2", n=50)) == "trend-seasonal"
    with pytest.raises(KernelError, match="co2"):
        build_model(arm(60), "trend-seasonal")
    with pytest.raises(KernelError, match="kernels: matern32"):
        build_model(arm(60), "matern")


def test_the_seasonal_forecast_beats_a_plain_matern_clearly():
    data = datasets.load("co2", n=500, n_test=300).to(torch.float32)
    (spec,) = parse_solvers("exact")
    errors = {}
    for kernel in ("trend-seasonal", "matern32"):
        run = Run(SolverResult.of(spec))
        model = train(run, spec, data, kernel, build_model(data, kernel)[0].state_dict(), Schedule(40), 0, silent)
        predict(run, spec, model, data)
        errors[kernel] = run.result.rmse
        if kernel == "trend-seasonal":
            assert "season.drift.lengthscale" in run.result.steps[0].hyperparameters
            assert not any("period_length" in name for name in run.result.steps[0].hyperparameters), "it is fixed"
    assert errors["trend-seasonal"] < 0.6 * errors["matern32"]


def test_a_fit_predicts_in_the_unit_of_the_target(tmp_path):
    data = datasets.load("borehole", n=200, n_test=40)
    (spec,) = parse_solvers("rangeformer")
    fitted = fit_by_adam(data, datasets.split_of(data), spec, steps=30)
    fitted.write_predictions(tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0].startswith("row,flow_m3_per_year,mean,sd,lower95,upper95,rw,")
    assert len(lines) == 41
    rows = torch.tensor([[float(cell) for cell in line.split(",")] for line in lines[1:]], dtype=torch.float64)
    observed, mean = rows[:, 1], rows[:, 2]
    assert float(observed.mean()) == pytest.approx(data.target_mean, rel=0.3)
    rmse = float((mean - observed).square().mean().sqrt()) / data.target_scale
    assert rmse == pytest.approx(fitted.result.rmse, rel=1e-5)
    assert rmse < 0.5
    assert fitted.report is not None
    assert fitted.hyperparameters["noise"] < 0.6
