"""Whole fits against seconds: what a run remembers, how it is judged, and the table."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from typer.testing import CliRunner

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench import fits
from gp_rangeformer.lab.bench.command import bench_app
from gp_rangeformer.lab.bench.fit_contenders import CONTENDERS
from gp_rangeformer.lab.bench.fit_tables import ended, grid, missed, spoken
from gp_rangeformer.lab.bench.fits import GAPS, FitCell, FitRun, measure
from gp_rangeformer.lab.guide.__main__ import ROOT
from gp_rangeformer.lab.guide.fits import _LOOKS, fits_sentence
from gp_rangeformer.lab.guide.results import FitRuns, Results

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
    text = grid([cell], "a note", 20.0).to_markdown()
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
    assert set(_LOOKS) == set(CONTENDERS)


def test_both_rates_of_adam_are_tried_and_the_better_one_is_named(cell) -> None:
    (run,) = [run for run in cell.runs if run.name == "rangeformer, Adam"]
    assert run.how in CONTENDERS["rangeformer, Adam"]
    assert len(CONTENDERS["rangeformer, Adam"]) == 2
    assert run.evaluations == 501
    assert f"rangeformer, Adam, {run.how}" in grid([cell], "", 20.0).to_markdown()


def test_the_better_of_two_is_the_one_that_arrives_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    adam = CONTENDERS["exact"][""]

    def idle(mll, watch) -> str:
        watch(mll)
        return "1 steps"

    dataset = datasets.load("robot_arm", n=60, n_test=1, seed=0)
    for tries in ({"a": adam, "b": idle}, {"b": idle, "a": adam}):
        monkeypatch.setitem(CONTENDERS, "exact", tries)
        (run,) = measure(dataset, KERNEL, ["exact"], dtype=torch.float64, patience=20.0).runs
        assert run.how == "a"


def test_a_short_fit_is_repeated_and_its_median_counts(cell, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in cell.runs:
        assert len(run.totals) == 3
        assert run.total == sorted(run.totals)[1]
    assert " (" in grid([cell], "", 20.0).rows[0][7]
    monkeypatch.setattr(fits, "_REPEATED_BELOW", 0.0)
    dataset = datasets.load("robot_arm", n=60, n_test=1, seed=0)
    (run,) = measure(dataset, KERNEL, ["exact"], dtype=torch.float64, patience=20.0).runs
    assert run.totals == ()


@pytest.mark.parametrize(
    ("reason", "said", "why_not"),
    [
        ("out of time", "stopped after 240 s", "not within 240 s"),
        ("failed: NotPSDError", "crashed (NotPSDError)", "crashed"),
        ("200 steps", "200 steps", "not within 200 steps"),
        ("converged", "converged", "ended short of it"),
        ("CONVERGENCE: REL, in float64 from evaluation 6 on", "converged, in float64 from evaluation 6 on", "ended"),
        ("STOP: TOTAL NO. OF F,G EVALUATIONS EXCEEDS LIMIT", "200 evaluations", "not within 200 evaluations"),
    ],
)
def test_why_a_run_ended_is_said_in_words(reason: str, said: str, why_not: str) -> None:
    run = FitRun("a", 201, 3.0, -0.5, (1.0,), (-0.5,), reason)
    assert ended(run, 240.0) == said
    assert missed(run, 240.0).startswith(why_not)


def _run(name: str, second: float | None, reason: str, how: str = "") -> FitRun:
    values = (-1.0,) if second is None else (0.0,)
    return FitRun(name, 201, 9.0, values[0], (second or 9.0,), values, reason, how)


def test_the_sentence_leaves_nothing_out() -> None:
    def cell(name: str, *runs: FitRun) -> FitCell:
        return FitCell(name, 4000, 8, 0.0, runs)

    adam, lbfgs = "rangeformer, Adam", "GPyTorch Cholesky, L-BFGS"
    failed = _run(lbfgs, None, "failed: X")
    cells = [
        cell("a", _run("rangeformer", 2.0, ""), _run(adam, None, "500 steps", "rate 0.3"), _run(lbfgs, 0.9, "")),
        cell("b", _run("rangeformer", 1.0, ""), _run(adam, None, "500 steps", "rate 0.1"), failed),
        cell("c", _run("rangeformer", None, "converged"), _run(adam, None, "out of time"), _run(lbfgs, 3.0, "")),
    ]
    results = Results(ROOT)
    results.__dict__["fits"] = {"one": FitRuns("float32", 0, 240.0, cells)}
    assert fits_sentence(results).endswith(
        "at n = 4,000 within 1.0 to 2.0 s (1 of 3 ended short of it): Adam on the same solver at rate 0.1 or rate 0.3 "
        "nowhere as near (2 of 3 not within 500 steps, 1 not within 240 s), GPyTorch's Cholesky with L-BFGS 0.45 times "
        "as long (1 of 3 crashed, 1 there alone)."
    )
