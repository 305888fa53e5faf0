"""Small data sets: what is measured, the file it can be resumed from, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import gpytorch
import pytest
import torch
from typer.testing import CliRunner

from gp_rangeformer import settings
from gp_rangeformer.lab.bench import small, small_tasks
from gp_rangeformer.lab.bench.small import Cell, Timing, measure_cell, run, time_pairs
from gp_rangeformer.lab.bench.small_tasks import (
    FITS,
    TASKS,
    FastPrediction,
    Plan,
    Prediction,
    Step,
    botorch_conditions,
    draw_data,
)
from gp_rangeformer.lab.cli import app

PLAN = Plan(dimensions=6, dtype="float64", seed=0, repetitions=2, threads=1)
WITHOUT_FIT = [name for name in TASKS if name not in FITS]
DIFFERENCE = 1e-8


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", "small", *map(str, arguments)])


@pytest.fixture
def without_botorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "has_botorch", lambda: False)


@pytest.fixture
def answering() -> Any:
    """The plug-in answers at every n."""
    with settings.exact_size(1):
        yield


def timing(host: list[float], flag: list[float]) -> Timing:
    return Timing(host, flag, dict.fromkeys(("loss", "gradient", "mean", "variance"), 1e-12), ["exact"])


# --------------------------------------------------------------------------------------------------------------------
# What is measured


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n", [10, 20])
def test_host_and_flag_agree(n: int, batch: int, answering: None) -> None:
    cell = measure_cell(n, batch, PLAN, WITHOUT_FIT, patience=60.0)
    assert list(cell.timings) == WITHOUT_FIT
    assert cell.timings["step"].answered_by == ["exact"], "the host was compared with itself"
    for found in cell.timings.values():
        assert len(found.host) == len(found.flag) == PLAN.repetitions
        assert min(found.host + found.flag) > 0
        assert max(found.differences.values()) < DIFFERENCE
    assert set(cell.timings["step"].differences) == {"loss", "gradient"}
    assert set(cell.timings["prediction"].differences) == {"mean", "variance"}
    assert len(cell.peaks) == 2


def test_the_largest_difference_is_kept() -> None:
    errors = iter([1e-3, 1e-5])

    class Wrong(Step):
        def run(self) -> Any:
            return super().run() * (1 + next(errors) if settings.rangeformer.on() else 1)

    found = time_pairs(Wrong(10, 1, PLAN), repetitions=1, patience=60.0)
    assert found.differences["loss"] == pytest.approx(1e-3)
    assert found.differences["gradient"] < DIFFERENCE


def test_a_batch_is_so_many_models_with_hyperparameters_of_their_own() -> None:
    plan = replace(PLAN, dimensions=2)
    step = Step(10, 3, plan)
    before = step.model.covar_module.base_kernel.lengthscale.clone()
    step.renew()
    after = step.model.covar_module.base_kernel.lengthscale
    assert after.shape == (3, 1, 2)
    assert after.unique().numel() == 6
    assert not torch.equal(before, after)
    step.prepare()
    with botorch_conditions():
        losses = step.run()
        assert losses.shape == (3,)
        for number in range(3):
            single = Step(10, 1, plan)
            single.x, single.y = step.x[number], step.y[number]
            single.model.set_train_data(single.x, single.y, strict=False)
            of_batch = dict(step.model.named_parameters())
            with torch.no_grad():
                for name, parameter in single.model.named_parameters():
                    parameter.copy_(of_batch[name][number].reshape(parameter.shape))
            single.prepare()
            torch.testing.assert_close(single.run(), losses[number])


def test_data_is_standardised_and_the_same_for_a_seed() -> None:
    x, y, x_test = draw_data(20, 3, PLAN)
    assert (x.shape, y.shape, x_test.shape) == ((20, 6), (20, 3), (100, 6))
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(y.std(0), torch.ones(3, dtype=torch.float64))
    assert all(map(torch.equal, draw_data(20, 3, PLAN), (x, y, x_test)))
    assert not torch.equal(draw_data(20, 3, replace(PLAN, seed=1))[0], x)


@pytest.mark.parametrize("kind", [Prediction, FastPrediction])
def test_a_prediction_is_made_without_what_an_earlier_one_left(kind: type[Prediction]) -> None:
    task = kind(20, 1, PLAN)
    task.renew()
    task.prepare()
    task.run()
    assert task.model.prediction_strategy is not None
    task.prepare()
    assert task.model.prediction_strategy is None
    assert not task.model.training
    assert not task.likelihood.training


def test_the_host_has_botorchs_settings_and_gets_its_own_back() -> None:
    host = gpytorch.settings

    def values() -> list[Any]:
        fast = host.fast_computations
        flags = [fast.covar_root_decomposition.on(), fast.log_prob.on(), fast.solves.on()]
        return [*flags, host.cholesky_max_tries.value(), host.max_cholesky_size.value()]

    before = values()
    with botorch_conditions():
        assert values() == [False, False, False, 6, 4096]
        assert host.max_eager_kernel_size.value() == 4096
    assert values() == before
    assert small_tasks.has_botorch()
    assert values() == before


def test_pairs_alternate_and_the_first_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[bool] = []

    class Watched(Step):
        def run(self) -> Any:
            flags.append(bool(settings.rangeformer.on()))
            return super().run()

    found = time_pairs(Watched(10, 1, PLAN), repetitions=3, patience=60.0)
    assert flags == [True, False, False, True] * 2
    assert len(found.host) == len(found.flag) == 3
    assert len(time_pairs(Watched(10, 1, PLAN), repetitions=9, patience=0.0).host) == 3
    monkeypatch.setattr(Watched, "fewest", 1)
    assert len(time_pairs(Watched(10, 1, PLAN), repetitions=9, patience=0.0).host) == 1


def test_the_ratio_is_of_medians_and_its_spread_of_pairs() -> None:
    found = timing([2.0] * 10 + [4.0], [1.0] * 11)
    assert found.ratio == 2.0
    assert found.spread == (2.0, 2.0)
    assert timing([1.0 + i for i in range(11)], [1.0] * 11).spread == (2.0, 10.0)
    assert timing([3.0], [2.0]).spread == (1.5, 1.5)


def test_botorchs_fit_ends_at_the_same_likelihood(answering: None) -> None:
    pytest.importorskip("botorch")
    cell = measure_cell(20, 1, PLAN, ["step", "fit"], patience=0.0)
    fit = cell.timings["fit"]
    assert fit.answered_by == ["exact"]
    assert fit.differences["loss"] < 1e-5  # L-BFGS's own tolerance
    assert fit.evaluations is not None
    assert min(fit.evaluations) > 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_floor_is_the_gradient_of_the_log_determinant(batch: int) -> None:
    """With respect to the coordinates in units of length-scales, whatever else a step computes."""
    step = Step(40, batch, PLAN)
    step.renew()
    kernel = step.model.covar_module.base_kernel
    z = (step.x / kernel.lengthscale).detach().requires_grad_()
    squares = (z.unsqueeze(-2) - z.unsqueeze(-3)).square().sum(-1)
    dense = (-0.5 * squares).exp() + torch.diag_embed(step.likelihood.noise.detach().expand_as(step.y))
    torch.logdet(dense).sum().backward()
    found = small_tasks.floor_of(step)()
    assert z.grad is not None
    torch.testing.assert_close(found[0].reshape(z.shape), z.grad, rtol=1e-8, atol=1e-8)


# --------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_writes_everything_and_resumes(tmp_path: Path, without_botorch: None) -> None:
    path, table = tmp_path / "small.json", tmp_path / "small.md"
    options = ["--repetitions", 2, "--seed", 3, "--json", path]
    result = invoke("--sizes", "10", "--batches", "1,2", *options)
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    assert content["plan"] == {"dimensions": 6, "dtype": "float64", "seed": 3, "repetitions": 2, "threads": 1}
    assert content["machine"]["torch_threads"] == 1
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["machine"]["processor"]
    assert content["settings"]["exact_size"] == settings.exact_size.value()
    assert (content["sizes"], content["batches"], content["botorch"]) == ([10], [1, 2], None)
    for cell in content["cells"]:
        assert list(cell["timings"]) == list(cell["summaries"]) == WITHOUT_FIT
        for name, found in cell["timings"].items():
            assert len(found["host"]) == len(found["flag"]) == 2
            assert max(found["differences"].values()) < DIFFERENCE
            assert set(cell["summaries"][name]) == {"host_seconds", "flag_seconds", "ratio", "spread"}

    result = invoke("--sizes", "20,10", "--batches", "2", *options, "--markdown", table)
    assert result.exit_code == 0, result.output
    assert "n=20 batch=2" in result.stdout
    assert "n=10" not in result.stdout, "what is in the file was measured again"
    resumed = json.loads(path.read_text())
    assert [(cell["n"], cell["batch"]) for cell in resumed["cells"]] == [(10, 1), (10, 2), (20, 2)]
    assert resumed["cells"][:2] == content["cells"]
    text = table.read_text()
    for said in ("**Small data sets: milliseconds**", "| 10, 2 |", "| 20, 2 |", "d = 6, float64, seed 3, threads: 1"):
        assert said in text
    assert "| 10, 1 |" not in text, "it was not asked for"


def test_a_fit_that_is_missing_is_measured_when_botorch_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[int, int, bool]] = []

    def measure(n: int, batch: int, plan: Plan, tasks: list[str], *others: object) -> Cell:
        measured.append((n, batch, "fit" in tasks))
        return Cell(n, batch, {name: timing([1.0], [0.5]) for name in tasks}, [None, None])

    monkeypatch.setattr(small, "measure_cell", measure)
    path = tmp_path / "small.json"
    for installed in (False, True, True):
        monkeypatch.setattr(small, "has_botorch", lambda installed=installed: installed)
        monkeypatch.setattr(metadata, "version", lambda name: "1.0")
        run(PLAN, [10], [1, 4], patience=1.0, path=path)
    assert measured == [(10, 1, False), (10, 4, False), (10, 1, True)]
    assert [Cell.from_json(cell).n for cell in json.loads(path.read_text())["cells"]] == [10, 10]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "many"], "--sizes 'many': whole numbers separated by commas"),
        (["--sizes", "1,20"], "--sizes '1,20': whole numbers from 2 on"),
        (["--batches", "1,"], "--batches '1,': whole numbers separated by commas"),
        (["--batches", "0"], "--batches '0': whole numbers from 1 on"),
        (["--dtype", "float16"], "no dtype 'float16': float32 or float64"),
        (["--dimensions", "0"], "--dimensions"),
        (["--repetitions", "0"], "--repetitions"),
    ],
)
def test_the_command_refuses_what_it_cannot_measure(options: list[str], said: str) -> None:
    result = invoke(*options)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", "").split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not a result of this command"),
        ('{"plan": {"steps": 3}, "cells": []}', "is not a result of this command"),
        (
            '{"plan": {"dimensions": 6, "dtype": "float64", "seed": 1, "repetitions": 9, "threads": 1}, "cells": []}',
            "holds a run with seed 1, not 0: choose another --json",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    result = invoke("--sizes", "10", "--repetitions", "9", "--json", path)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", "").split())
    assert path.read_text() == content
