"""Comparisons: fits, scores, files, tables, the CO2 record, kernels."""

import dataclasses
import json
import math

import gpytorch
import pytest
import torch
from linear_operator.utils.errors import NotPSDError

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare import Options, State, compare, parse_solvers, write_json
from gp_rangeformer.lab.compare.audit import gradient_vector
from gp_rangeformer.lab.compare.fit import fit_by_adam
from gp_rangeformer.lab.compare.result import SolverResult, plain
from gp_rangeformer.lab.compare.run import silent
from gp_rangeformer.lab.compare.tables import markdown, tables
from gp_rangeformer.lab.compare.training import Run, Schedule, predict, train
from gp_rangeformer.lab.models import KERNELS, KernelError, build_model, default_kernel, hyperparameters, year_length
from tests.lab.comparisons import STEPS, N, arm, result_of


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
