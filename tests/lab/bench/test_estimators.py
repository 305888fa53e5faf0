"""The estimator beside scikit-learn's: what is measured, its table, sentence and command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.command import bench_app
from gp_rangeformer.lab.bench.estimator_cell import Contender, EstimatorCell
from gp_rangeformer.lab.bench.estimator_tables import grid, times
from gp_rangeformer.lab.bench.estimators import measure
from gp_rangeformer.lab.guide.estimators import estimators_sentence, estimators_table
from gp_rangeformer.lab.guide.results import Results
from gp_rangeformer.sklearn.optimum import TOLERANCE

THEIRS = Contender(2.0, 120.0, 50, True, 0.5, -0.5, 0.1)
CELL = EstimatorCell("robot_arm", 2000, 8, 1000, THEIRS, replace(THEIRS, fit=4.0), 1e-4, 2e-4)


def test_both_end_at_the_same_likelihood_and_predict_the_same() -> None:
    found = measure(datasets.load("borehole", n=60, n_test=20, seed=0), patience=60.0)
    assert (found.n, found.d, found.t) == (60, 8, 20)
    assert found.theirs.ended
    assert found.ours.value >= found.theirs.value - TOLERANCE
    assert max(found.mean_off, found.deviation_off) < 1e-6
    assert found.ours.rmse == pytest.approx(found.theirs.rmse, rel=0.1)
    assert min(found.theirs.evaluations, found.ours.evaluations) > 2
    assert EstimatorCell.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_fit_that_was_stopped_is_marked() -> None:
    found = measure(datasets.load("robot_arm", n=40, n_test=2, seed=0), patience=1e-9)
    assert not found.theirs.ended
    assert times(found).startswith("> ")
    assert times(replace(CELL, theirs=replace(THEIRS, ended=False))) == "> 30"


def test_table_and_sentence(tmp_path) -> None:
    text = grid([CELL], "a note").to_markdown()
    assert all(word in text for word in ("GaussianProcessRegressor", "RangeFormerRegressor", "30", "2e-04", "a note"))
    folder = tmp_path / "examples" / "guide" / "results"
    folder.mkdir(parents=True)
    machine = {
        "processor": "one",
        "cores": 2,
        "torch_threads": 2,
        "versions": {"torch": "2", "gpytorch": "1"},
    }
    content = {"plan": {"t": 1000, "seed": 3, "patience": 900.0}, "machine": machine, "cells": [CELL.to_json()]}
    (folder / "sklearn.json").write_text(json.dumps(content))
    assert estimators_sentence(Results(tmp_path)) == (
        "At n = 2,000 a fit takes 4.00 s on robot_arm, where GaussianProcessRegressor takes 30 times as long."
    )
    assert "seed 3" in estimators_table(Results(tmp_path))


def test_the_command_resumes_and_refuses(tmp_path) -> None:
    path = tmp_path / "sklearn.json"
    options = ["sklearn", "--dataset", "robot_arm", "--sizes", "100", "--t", "5", "--json", str(path)]
    first = CliRunner().invoke(bench_app, options)
    assert first.exit_code == 0, first.output
    written = path.read_text()
    again = CliRunner().invoke(bench_app, options)
    assert again.exit_code == 0
    assert path.read_text() == written
    other = CliRunner().invoke(bench_app, [*options, "--seed", "5"])
    assert other.exit_code == 2
    assert "seed" in other.output
