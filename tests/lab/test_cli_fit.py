"""``gp-rangeformer fit`` of a data set, and what it refuses."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from linear_operator.utils.errors import NotPSDError

from tests.lab.commands import invoke


def test_fit_prints_hyperparameters_errors_and_the_report_and_writes_predictions(table, tmp_path):
    path = tmp_path / "predictions.csv"
    result = invoke("fit", table, "--target", "y", "--steps", 10, "--min-size", 100, "--predictions", path)
    assert result.exit_code == 0, result.output
    for said in ("lengthscale[a]", "noise", "test RMSE", "test NLL", "inv_quad_logdet n=180 -> rangeformer"):
        assert said in result.stdout
    assert re.search(
        r"^\d+\.\d{3} s/step \(median\), \d+\.\d passes over K; training .*; "
        r"peak memory \d+ MiB, with predictions \d+ MiB, beside what was held before$",
        result.stdout,
        re.MULTILINE,
    )
    lines = path.read_text().splitlines()
    assert lines[0] == "line,y,mean,sd,lower95,upper95,a,b"
    assert len(lines) == 1 + 20
    for line in lines[1:]:
        _, _, mean, deviation, lower, upper, *_ = map(float, line.split(","))
        assert lower < mean < upper
        assert deviation > 0


def test_fit_trains_to_convergence_unless_adam_is_asked_for(table, tmp_path):
    path = tmp_path / "fit.json"
    converged = invoke("fit", table, "--target", "y", "--json", path)
    assert converged.exit_code == 0, converged.output
    found = json.loads(path.read_text())
    assert found["reason"] == "converged"
    assert found["rmse"] > 0
    assert found["history"][-1]["points"] == found["n"]
    assert "left to gain" in converged.output
    assert "converged" in converged.output
    assert found["leave_one_out"]["log_density"] == pytest.approx(-found["nll"], abs=0.5)
    assert [one["level"] for one in found["leave_one_out"]["coverage"]] == [0.5, 0.8, 0.95]
    assert "leave-one-out" in converged.output
    by_adam = invoke("fit", table, "--target", "y", "--optimizer", "adam", "--steps", 3)
    assert by_adam.exit_code == 0
    assert "left to gain" not in by_adam.output


def test_predictions_that_fail_do_not_cost_the_training(table, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("too little memory")

    monkeypatch.setattr("gp_rangeformer.regression.TableRegression.predict", fail)
    path = tmp_path / "fit.json"
    result = invoke("fit", table, "--target", "y", "--json", path)
    assert result.exit_code == 1
    assert "the predictions failed: too little memory" in result.output
    assert "left to gain" in result.output
    assert json.loads(path.read_text())["reason"] == "converged"


@pytest.mark.parametrize("options", [(), ("--optimizer", "adam", "--steps", 3)])
def test_scores_that_fail_do_not_cost_the_predictions(table, tmp_path, monkeypatch, options):
    def fail(*arguments):
        raise NotPSDError("not positive definite")

    monkeypatch.setattr("gp_rangeformer.lab.compare.fit.leave_one_out", fail)
    path = tmp_path / "p.csv"
    result = invoke("fit", table, "--target", "y", "--predictions", path, *options)
    assert result.exit_code == 1
    assert "the leave-one-out scores failed: not positive definite" in result.output
    assert not np.isnan(pd.read_csv(path)["mean"].to_numpy()).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--optimizer", "sgd"), "--optimizer 'sgd': fit_mll or adam"),
        (("--optimizer", "fit_mll", "--steps", 3), "--steps and --lr belong to --optimizer adam"),
    ],
)
def test_fit_refuses_an_optimizer_that_cannot_be(table, options, said):
    result = invoke("fit", table, "--target", "y", *options)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")


def test_fit_refuses_a_missing_file():
    result = invoke("fit", "missing.csv", "--target", "y")
    assert result.exit_code == 2
    assert "no file missing.csv" in result.output


def test_fit_takes_a_data_set_by_name():
    result = invoke("fit", "--dataset", "robot_arm", "--n", 150, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "150 training" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to fit: give DATA.csv with --target COLUMN, or --dataset NAME"),
        (("--dataset", "robot_arm,borehole"), "fit trains one GP: give one --dataset"),
    ],
)
def test_fit_refuses_nothing_and_too_much(arguments, said):
    result = invoke("fit", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_fit_says_in_one_line_why_training_failed(table, monkeypatch):
    def fail(*arguments, **options):
        raise FloatingPointError("the log marginal likelihood is nan at step 3")

    monkeypatch.setattr("gp_rangeformer.lab.compare.fit.train", fail)
    result = invoke("fit", table, "--target", "y", "--optimizer", "adam")
    assert result.exit_code == 1
    assert "Training failed: the log marginal likelihood is nan at step 3" in result.output
