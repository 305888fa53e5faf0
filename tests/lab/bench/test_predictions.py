"""What follows a fit: who is measured, against what, what is said of who fails, the file and the tables."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gp_rangeformer import settings
from gp_rangeformer.lab.bench import prediction_contenders, prediction_data, prediction_paths, predictions
from gp_rangeformer.lab.bench.contenders import UnavailableError
from gp_rangeformer.lab.bench.prediction_calls import enough, measure_row
from gp_rangeformer.lab.bench.prediction_contenders import (
    CHOLESKY,
    CONTENDERS,
    FLAG,
    GPFLASH,
    HOST,
    SCIKIT_LEARN,
    Contender,
    check_memory,
)
from gp_rangeformer.lab.bench.prediction_data import Fitted, blocks, load_fitted
from gp_rangeformer.lab.bench.prediction_exact import ExactModel, ExactPredictions
from gp_rangeformer.lab.bench.prediction_further import Further, measure_further
from gp_rangeformer.lab.bench.prediction_left_out import measure_left_out
from gp_rangeformer.lab.bench.prediction_paths import BOTORCH, OURS, measure_paths
from gp_rangeformer.lab.bench.prediction_tables import (
    further_grid,
    left_out_grid,
    paths_grid,
    predictions_grid,
    small_grid,
)
from gp_rangeformer.lab.bench.predictions import Cell, Plan, measure_cell
from gp_rangeformer.lab.bench.resumed import PlanError
from gp_rangeformer.lab.cli import app
from gp_rangeformer.lab.compare.audit import snapshot
from gp_rangeformer.lab.datasets import DatasetError, load
from gp_rangeformer.lab.models import build_model

PLAN = Plan(t=60, few=20, wide=64, paths=4, dtype="float32", seed=0, threads=1)
POINTS = 2 * sum(PLAN.sizes) + 4 * PLAN.wide
OPTIONS = ("--dataset", "robot_arm", "--sizes", "100", "--t", "60", "--few", "20", "--wide", "64", "--paths", "4")


def start(name: str) -> dict[str, Tensor]:
    """Hyperparameters for a set of which no optimum is known."""
    model: Any = build_model(load(name, n=100, n_test=1), "matern32")[0]
    model.likelihood.noise = 0.01
    return snapshot(model)


@pytest.fixture
def any_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_data, "optimum", start)


@pytest.fixture(scope="module")
def fitted() -> Iterator[Fitted]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_data, "optimum", start)
        yield load_fitted("robot_arm", 120, POINTS, dtype=torch.float32, seed=0)


@pytest.fixture(scope="module")
def cell(fitted: Fitted) -> Cell:
    return measure_cell("robot_arm", fitted, PLAN)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", "predictions", *map(str, arguments)])


# --------------------------------------------------------------------------------------------------------------------
# Points, and what is exact


def test_points_are_other_rows_and_where_those_end_rows_that_moved(any_set: None) -> None:
    plenty = load_fitted("robot_arm", 100, 200, dtype=torch.float64, seed=0)
    assert (plenty.n, len(plenty.data.test_x), plenty.moved) == (100, 200, 0)
    assert "not given" in plenty.describe_points()
    own = {tuple(row.tolist()) for row in plenty.data.train_x}
    assert not own & {tuple(row.tolist()) for row in plenty.data.test_x}
    scarce = load_fitted("robot_arm", 2100, 200, dtype=torch.float64, seed=0)  # of 2000 and 200 rows
    assert scarce.moved == 100
    assert "100 rows drawn from the whole set and moved by 0.1" in scarce.describe_points()
    with pytest.raises(DatasetError, match="lower --sizes"):
        load_fitted("robot_arm", 2500, 200, dtype=torch.float64, seed=0)


def test_no_two_blocks_share_a_point() -> None:
    found = blocks(torch.zeros(160, 1), (60, 20))
    taken = [index for pair in found.values() for block in pair for index in range(block.start, block.stop)]
    assert sorted(taken) == list(range(160))
    with pytest.raises(ValueError, match="160 points are needed"):
        blocks(torch.zeros(159, 1), (60, 20))


def test_exact_values_are_the_formulas(fitted: Fitted) -> None:
    wide = fitted.widened()
    model: Any = wide.build()
    x, points = wide.data.train_x, wide.data.test_x[:30]
    with settings.rangeformer(False), torch.no_grad():
        prior = model.covar_module(torch.cat([x, points])).to_dense()
    n = fitted.n
    inverse = torch.linalg.inv(prior[:n, :n] + model.likelihood.noise.detach() * torch.eye(n, dtype=torch.float64))
    constant = model.mean_module.constant.detach()
    mean = constant + prior[n:, :n] @ inverse @ (wide.data.train_y - constant)
    variance = (prior[n:, n:] - prior[n:, :n] @ inverse @ prior[:n, n:]).diagonal()
    found = ExactPredictions(ExactModel(fitted), points)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.variance, variance)
    whole = variance + found.noise
    errors = found.errors(slice(0, 30), mean + 0.1 * whole.sqrt(), variance + 0.2 * whole)
    assert (errors.mean, errors.variance, errors.largest_variance) == pytest.approx((0.1, 0.2, 0.2))


def test_left_out_densities_are_those_of_models_without_the_target(fitted: Fitted) -> None:
    few = fitted.some(20)
    found = ExactModel(few).left_out()
    wide = few.widened()
    for left in (0, 7):
        others = torch.arange(20) != left
        data = replace(wide.data, train_x=wide.data.train_x[others], train_y=wide.data.train_y[others])
        model = ExactModel(replace(wide, data=data))
        mean, variance = model.predict(wide.data.train_x[left : left + 1])
        normal = torch.distributions.Normal(mean, (variance + model.noise).sqrt())
        torch.testing.assert_close(found[left], normal.log_prob(wide.data.train_y[left])[0])


# --------------------------------------------------------------------------------------------------------------------
# Contenders


def test_everybody_answers_the_same(cell: Cell) -> None:
    assert [row.name for row in cell.rows] == [contender.name for contender in CONTENDERS]
    for row in cell.rows:
        for calls in row.calls:
            if row.name in (GPFLASH, SCIKIT_LEARN) and calls.failure is not None:
                assert "pip install" in calls.failure
                continue
            assert calls.failure is None, row.name
            assert calls.errors is not None
            assert max(calls.errors.mean, calls.errors.largest_variance) < 1e-3, row.name
            assert calls.first is not None
            assert calls.second is not None
            assert min(calls.first, calls.second) > 0
            assert min(calls.repeated) >= 1
    assert any("predictive" in text or "solve" in text for text in cell.rows[0].at(60).answered_by)
    assert cell.row(CHOLESKY) is not None
    assert not any(calls.answered_by for calls in cell.rows[2].calls), "the flag was on for GPyTorch"


def test_every_first_call_is_of_a_fresh_model_and_later_ones_of_other_points(fitted: Fitted) -> None:
    models: list[list[Tensor]] = []

    def build(fitted: Fitted) -> Any:
        asked: list[Tensor] = []
        models.append(asked)

        def predict(x: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(x)
            return torch.zeros(len(x)), torch.ones(len(x))

        return predict

    (calls,) = measure_row(Contender("nobody", "", build), fitted, [20], None).calls
    assert calls.repeated == (5, 5)
    assert [len(asked) for asked in models] == [6, 1, 1, 1, 1, 1]  # the last one's memory
    assert all(not torch.equal(one, other) for one, other in zip(models[0], models[0][1:], strict=False))
    assert calls.errors is None


def test_short_runs_are_repeated_and_long_ones_are_not() -> None:
    assert not enough([])
    for first, wanted in ((0.1, 5), (20.0, 3), (40.0, 1)):
        assert not enough([first] * (wanted - 1))
        assert enough([first] * wanted)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ArithmeticError("not positive definite\nmore"), "ArithmeticError: not positive definite"),
        (UnavailableError("not here"), "not here"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_who_fails_is_told_and_costs_nobody_else(fitted: Fitted, error: Exception, said: str) -> None:
    def build(fitted: Fitted) -> Any:
        def predict(x: Tensor) -> tuple[Tensor, Tensor]:
            if len(x) > 20:
                raise error
            return torch.zeros(len(x)), torch.ones(len(x))

        return predict

    row = measure_row(Contender("nobody", "", build), fitted, [60, 20], None)
    assert row.at(60).failure == said
    assert row.at(60).first is None
    assert row.at(20).failure is None
    nan = Contender("nan", "", lambda fitted: lambda x: (x[:, 0] * torch.nan, x[:, 0]))
    assert measure_row(nan, fitted, [20], None).at(20).failure == "NaN or infinity in its answer"


def test_who_needs_more_memory_than_is_free_is_refused(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_contenders, "free_bytes", lambda device: 2**19)
    check_memory(2**18)
    with pytest.raises(UnavailableError, match=r"0\.977 GiB needed, 0\.000488 GiB free"):
        check_memory(1000 * 2**20)
    HOST.check(fitted, 60)
    with pytest.raises(UnavailableError, match="refused"):
        HOST.check(fitted, 300)
    failure = measure_row(HOST, fitted, [200], None).at(200).failure
    assert failure is not None
    assert failure.startswith("refused")
    monkeypatch.setattr(prediction_contenders, "free_bytes", lambda device: None)
    check_memory(2**60)


def test_a_missing_package_is_a_reason_that_names_the_remedy(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def missing(name: str, *package: str | None) -> Any:
        if name.split(".")[0] in ("gpflash", "sklearn"):
            raise ImportError(name)
        return original(name, *package)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(prediction_paths, "has_botorch", lambda: False)
    for contender in CONTENDERS:
        if contender.name in (GPFLASH, SCIKIT_LEARN):
            assert f"pip install {contender.name}" in str(measure_row(contender, fitted, [20], None).at(20).failure)
    ours, theirs = measure_paths(fitted, 2, 20, None)
    assert ours.failure is None
    assert "pip install botorch" in str(theirs.failure)


# --------------------------------------------------------------------------------------------------------------------
# Paths and scores


def test_paths_are_drawn_by_both_and_held_against_exact_variances(cell: Cell) -> None:
    ours, theirs = cell.paths
    assert (ours.name, theirs.name) == (OURS, BOTORCH)
    assert (ours.failure, ours.count, ours.t) == (None, 4, 60)
    assert len(ours.standardised) == 5
    assert sum(ours.standardised) / 5 == pytest.approx(1, abs=0.5)
    if theirs.failure is None:
        assert sum(theirs.standardised) / 5 == pytest.approx(1, abs=0.8)


def test_as_many_of_botorchs_paths_are_drawn_as_fit(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_paths, "has_botorch", lambda: True)
    bytes_of = 4 * fitted.n**2
    monkeypatch.setattr(prediction_contenders, "free_bytes", lambda device: 30 * bytes_of)
    assert prediction_paths._most(fitted, 64) == 16
    monkeypatch.setattr(prediction_contenders, "free_bytes", lambda device: bytes_of)
    with pytest.raises(UnavailableError, match="refused"):
        prediction_paths._most(fitted, 64)


def test_scores_are_held_against_an_inverse(cell: Cell, fitted: Fitted) -> None:
    found = cell.left_out
    assert found is not None
    assert found.failure is None
    assert found.error is not None
    assert 0 < found.error < 1e-2
    assert found.seconds is not None
    assert found.step is not None
    assert min(found.seconds, found.step) > 0
    assert measure_left_out(fitted, None).error is None


def test_further_observations_are_held_against_a_model_of_all_rows(fitted: Fitted) -> None:
    found = measure_further("robot_arm", fitted, audited=fitted.n)
    assert [row.failure for row in found.rows] == [None] * 3
    for row in found.rows:
        assert row.first is not None
        assert row.later is not None
        assert min(row.first, row.later) > 0
        assert row.errors is not None
        assert max(row.errors.mean, row.errors.largest_variance) < 1e-3, row.name
    assert Further.from_json(json.loads(json.dumps(found.to_json()))) == found
    unknown = replace(found.rows[1], first=None, later=None, errors=None, failure="it was tired")
    made = further_grid([replace(found, rows=(found.rows[0], unknown))], PLAN, "a machine")
    assert all(len(row) == len(made.headers) for row in made.rows)
    assert "it was tired" in made.to_markdown()
    assert measure_further("robot_arm", fitted, audited=0).rows[0].errors is None


# --------------------------------------------------------------------------------------------------------------------
# File, tables, command


def test_a_cell_survives_its_file_and_becomes_tables(cell: Cell) -> None:
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
    first, *others = cell.rows
    failed = replace(first.at(60), first=None, second=None, peak=None, errors=None, failure="it was tired")
    rows = (first, replace(others[0], calls=(failed, others[0].at(20))), *others[1:])
    shown = replace(cell, rows=rows)
    text = predictions_grid([shown], PLAN, "a machine").to_markdown()
    assert all(row.name in text for row in rows)
    assert "(1.0x)" in text
    assert f"{others[0].name}: it was tired (robot_arm, n = 120, 60 points)" in text
    assert "a machine" in text
    assert "rows of the set" in text
    for grid in (paths_grid, left_out_grid, small_grid):
        made = grid([shown], PLAN, "a machine")
        assert all(len(row) == len(made.headers) for row in made.rows)
        assert made.rows
    assert "exact" in left_out_grid([shown], PLAN, "").to_markdown()


def test_the_command_resumes_and_refuses(tmp_path: Path, any_set: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "CONTENDERS", (FLAG,))
    path, table = tmp_path / "predictions.json", tmp_path / "predictions.md"
    first = invoke(*OPTIONS, "--json", path, "--markdown", table)
    assert first.exit_code == 0, first.output
    content = json.loads(path.read_text())
    assert [(found["dataset"], found["n"]) for found in content["cells"]] == [("robot_arm", 100)]
    assert [(found["n"], found["left_out"]) for found in content["small"]] == [(100, None)]
    assert [(found["dataset"], found["n"]) for found in content["further"]] == [("robot_arm", 100)]
    assert content["plan"]["t"] == 60
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["settings"]["solver"]["variances"] == "auto"
    for title in (
        "**Predictions**",
        "**A small model**",
        "**Functions from the posterior**",
        "**Leave-one-out**",
        "**Further observations**",
    ):
        assert title in table.read_text()
    written = path.read_text()
    assert invoke(*OPTIONS, "--output", path).exit_code == 0
    assert path.read_text() == written
    other = invoke(*OPTIONS, "--json", path, "--seed", 1)
    assert other.exit_code == 2
    assert "seed" in other.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "float16"], "float32 or float64"),
        (["--t", "20", "--few", "20"], "fewer test points than"),
        (["--sets", "nobody"], "nobody"),
        (["--sizes", "many"], "whole numbers separated by commas"),
    ],
)
def test_the_command_says_what_it_cannot_measure(options: list[str], said: str) -> None:
    result = invoke(*options)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", "").split())


def test_a_second_number_of_points_is_the_smaller_one() -> None:
    with pytest.raises(PlanError, match="--few 60"):
        replace(PLAN, few=60)
