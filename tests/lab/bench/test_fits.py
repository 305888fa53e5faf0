"""Whole fits against seconds: what a run remembers, how it is judged, and the table."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from typer.testing import CliRunner

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.command import bench_app
from gp_rangeformer.lab.bench.fit_tables import grid, spoken
from gp_rangeformer.lab.bench.fits import CONTENDERS, GAPS, FitCell, FitRun, measure

KERNEL = "matern32"


@pytest.fixture(scope="module")
def cell() -> FitCell:
    dataset = datasets.load("robot_arm", n=120, n_test=1, seed=0)
    names = ["rangeformer", "exact", "rangeformer, Adam", "GPyTorch Cholesky, L-BFGS"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure(dataset, KERNEL, names, dtype=torch.float64, patience=20.0)


def test_the_fit_reaches_what_a_tight_one_finds(cell) -> None:
    runs = {run.name: run for run in cell.runs}
    for name in ("rangeformer", "exact"):
        assert cell.optimum - runs[name].end <= 1e-3
        assert runs[name].seconds_to(0.01, cell.optimum) is not None
        assert runs[name].evaluations < runs["rangeformer, Adam"].evaluations
    assert all(run.values[-1] == run.end for run in cell.runs)
    assert all(list(run.seconds) == sorted(run.seconds) for run in cell.runs)


def test_a_contender_that_is_slow_is_stopped() -> None:
    dataset = datasets.load("robot_arm", n=100, n_test=1, seed=0)
    found = measure(dataset, KERNEL, ["rangeformer, Adam"], dtype=torch.float64, patience=1e-9)
    (run,) = found.runs
    assert run.reason == "out of time"
    assert run.evaluations == 2


def test_seconds_to_a_gap() -> None:
    run = FitRun("a", 3, 3.0, -0.5, (1.0, 2.0, 3.0), (-2.0, -0.4, -0.5), "")
    assert run.seconds_to(0.1, -0.4) == 2.0
    assert run.seconds_to(1.6, -0.4) == 1.0
    assert run.seconds_to(0.001, 0.0) is None
    assert (spoken(None), spoken(0.1234), spoken(123.4)) == ("-", "0.12", "123")


def test_a_cell_survives_its_file_and_becomes_a_table(cell) -> None:
    assert FitCell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
    text = grid([cell], "a note").to_markdown()
    assert all(run.name in text for run in cell.runs)
    assert "a note" in text
    assert f"s to {GAPS[0]:g}" in text


def test_the_command_resumes_and_refuses(tmp_path) -> None:
    path = tmp_path / "fits.json"
    options = ["fits", "--dataset", "robot_arm", "--sizes", "100", "--contenders", "exact", "--json", str(path)]
    first = CliRunner().invoke(bench_app, options)
    assert first.exit_code == 0, first.output
    written = path.read_text()
    again = CliRunner().invoke(bench_app, options)
    assert again.exit_code == 0
    assert path.read_text() == written
    other = CliRunner().invoke(bench_app, [*options, "--patience", "5"])
    assert other.exit_code == 2
    assert "patience" in other.output
    unknown = CliRunner().invoke(bench_app, ["fits", "--contenders", "nobody"])
    assert unknown.exit_code == 2
    assert "nobody" in unknown.output


def test_every_contender_is_known_to_the_figure() -> None:
    from gp_rangeformer.lab.guide.fits import _LOOKS

    assert set(_LOOKS) == set(CONTENDERS)
