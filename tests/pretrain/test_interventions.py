"""The ladder of interventions: its data, its measures, and a run of a few steps."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import mmwrite

from pretrain.experiments.interventions import training
from pretrain.experiments.interventions.__main__ import main
from pretrain.experiments.interventions.cost import costs
from pretrain.experiments.interventions.evaluation import Protocol, headline, summarise
from pretrain.experiments.interventions.ladder import LADDER, Training, groups
from pretrain.experiments.interventions.problems import DISTRIBUTIONS, Problems, draw, errors, loss

SCALARS = ("trace", "lambda_max", "logdet")
RUNGS = ("numformer", "operator")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_consecutive_rungs_differ_in_one_switch():
    for one, other in pairwise(LADDER.values()):
        before, after = asdict(one), asdict(other)
        assert [key for key in before if before[key] != after[key] and key != "change"] in (
            ["kind"],
            ["looped"],
            ["data"],
            ["operator"],
        )


def test_scalars_share_a_model_and_solve_has_its_own():
    assert groups(("solve", "logdet", "trace")) == [("trace", "logdet"), ("solve",)]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_in_solve_no_condition_number_exceeds_ten_thousand(distribution):
    problems = draw(distribution, ("solve",), 64, 12, generator())
    assert float(torch.linalg.cond(problems.matrices.double()).max()) < 1.05e4


def test_gaussian_scalars_ask_logdet_of_definite_matrices_and_the_others_of_indefinite_ones():
    problems = draw("gaussian", SCALARS, 20, 9, generator())
    definite = torch.linalg.eigvalsh(problems.matrices.double())[:, 0] > 0
    assert len(definite) == 40
    assert torch.equal(~problems.scalars["logdet"].isnan(), definite)
    assert torch.equal(~problems.scalars["trace"].isnan(), ~definite)
    assert torch.equal(~problems.scalars["lambda_max"].isnan(), ~definite)


def test_exact_answers_have_no_error():
    scalars = Problems.of_scalars(torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).unsqueeze(0))
    exact = {"trace": 7.0, "lambda_max": 4.0, "logdet": float(np.log(8))}
    for task, value in exact.items():
        assert float(errors(task, torch.tensor([value]), scalars)) < 1e-6
    solve = draw("structured", ("solve",), 4, 8, generator())
    assert solve.solution is not None
    assert float(errors("solve", solve.solution, solve).max()) < 1e-2
    assert float(loss({"solve": solve.solution.float()}, solve)) < 1e-6


def test_errors_are_relative_per_point_and_residuals():
    scalars = Problems.of_scalars(torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).unsqueeze(0))
    assert float(errors("trace", torch.tensor([14.0]), scalars)) == pytest.approx(1)
    assert float(errors("lambda_max", torch.tensor([5.0]), scalars)) == pytest.approx(0.25)
    assert float(errors("logdet", torch.tensor([float(np.log(8)) + 6]), scalars)) == pytest.approx(2)
    solve = draw("gaussian", ("solve",), 4, 8, generator())
    torch.testing.assert_close(errors("solve", torch.zeros(4, 8), solve), torch.ones(4, dtype=torch.float64))


def test_a_vanishing_trace_does_not_make_the_error_infinite():
    problems = Problems.of_scalars(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)).unsqueeze(0))
    assert float(errors("trace", torch.tensor([0.5]), problems)) == pytest.approx(0.5)


def test_training_lowers_the_loss(tmp_path):
    def final(steps: int) -> float:
        run = Training(LADDER["looping"], ("lambda_max",), 0, steps, batch=16, warm_up=5)
        return training.train(run, tmp_path / f"{steps}.safetensors")[1]["final_loss"]

    assert final(50) < 0.5 * final(1)


def test_a_looped_rung_is_judged_at_the_depth_of_training():
    record = {"median": [4.0, 3.0, 2.0, 1.0, 0.5]}
    assert headline(record, LADDER["looping"], depth=4) == 1.0
    assert headline({"median": [4.0]}, LADDER["numformer"], depth=4) == 4.0


def test_summaries_give_mean_and_spread_over_seeds():
    def result(error: float) -> dict[str, object]:
        record = {"task": "trace", "fits": True, "distribution": "gaussian", "n": 10, "median": [error]}
        return {"rung": "numformer", "tasks": ("trace",), "depth": 4, "errors": [record]}

    entry = summarise([result(1.0), result(3.0)], Protocol())["numformer"]["trace"]["in distribution"]
    assert entry["mean"] == 2.0
    assert entry["spread"] == pytest.approx(2**0.5)


def test_the_peak_of_numformer_grows_with_the_fourth_power_of_n_and_that_of_linear_attention_with_n():
    entries = [record["peak_bytes"] for record in costs(LADDER["numformer"], (10, 40))]
    rows = [record["peak_bytes"] for record in costs(LADDER["looping"], (10, 40))]
    assert entries[1] > 100 * entries[0]
    assert rows[1] < 6 * rows[0]


def test_numformer_is_not_run_where_it_would_not_fit():
    assert costs(LADDER["numformer"], (100,)) == [{"n": 100, "fits": False}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("interventions")
    (folder / "market").mkdir()
    mmwrite(folder / "market" / "small.mtx", np.diag(np.arange(1.0, 7.0)))
    mmwrite(folder / "market" / "large.mtx", np.diag(np.arange(1.0, 25.0)))
    arguments = ["--quick", "--out", str(folder / "out"), "--matrices", str(folder / "market"), "--models", *RUNGS]
    main(arguments)
    return folder / "out", arguments


def read(folder: Path) -> dict:
    return json.loads((folder / "interventions.json").read_text())


def test_a_run_writes_every_cell_of_every_model_to_one_file(finished):
    results = read(finished[0])["results"]
    assert [(result["rung"], result["tasks"]) for result in results] == [
        (rung, tasks) for tasks in (list(SCALARS), ["solve"]) for rung in RUNGS
    ]
    for result in results:
        assert len(result["errors"]) == len(result["tasks"]) * (len(DISTRIBUTIONS) * 4 + 2)


def test_a_run_writes_three_figures(finished):
    assert all((finished[0] / f"{name}.png").stat().st_size > 10_000 for name in ("errors", "loops", "cost"))


def test_matrices_beyond_the_position_tables_are_reported_as_not_fitting(finished):
    fits = {
        (result["rung"], record["matrix"]): record["fits"]
        for result in read(finished[0])["results"]
        for record in result["errors"]
        if record["distribution"] == "market"
    }
    assert fits == {
        ("numformer", "small"): True,
        ("numformer", "large"): False,
        ("operator", "small"): True,
        ("operator", "large"): True,
    }


def test_a_second_run_repeats_the_numbers_without_training(finished, monkeypatch):
    folder, arguments = finished
    before = read(folder)

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "draw", refuse)
    main(arguments)
    assert read(folder)["results"] == before["results"]


def test_another_number_of_steps_trains_again(finished, monkeypatch):
    _, arguments = finished

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "draw", refuse)
    with pytest.raises(AssertionError, match="trained again"):
        main([*arguments, "--steps", "4"])
