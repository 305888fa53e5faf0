"""Where the seconds of a step go: the clocks, and the command."""

from __future__ import annotations

import json
import time

import pytest
import torch
from typer.testing import CliRunner

from gp_rangeformer.kernels import fused
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.contenders import Problem
from gp_rangeformer.lab.bench.stages import FLOOR, REST, STAGES, measure_stages, timed
from gp_rangeformer.lab.cli import app
from gp_rangeformer.system.linear_system import LinearSystem

CPU = torch.device("cpu")


def problem(kernel: str = "matern32") -> Problem:
    return Problem(datasets.load("robot_arm", n=400, n_test=1, seed=0), kernel)


def test_every_stage_of_a_step_takes_time_and_together_they_are_the_step() -> None:
    found = measure_stages(problem(), steps=6)
    assert tuple(found.seconds) == STAGES
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.step == pytest.approx(found.floor + sum(found.seconds[s] for s in STAGES if s not in FLOOR))
    assert found.passes >= 1
    assert found.rate > 0
    assert found.fastest > 0


def test_what_a_stage_spends_in_another_is_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(system: LinearSystem, vectors: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return vectors

    system = LinearSystem(torch.eye(3), torch.ones(3))
    monkeypatch.setattr(LinearSystem, "matmul", product)
    monkeypatch.setattr(fused, "evaluate_arguments", lambda: (time.sleep(0.02), system.matmul(torch.ones(3, 1))))
    with timed(CPU) as seconds:
        fused.evaluate_arguments()  # type: ignore[call-arg]
    assert 0.02 <= seconds["K"] < 0.05
    assert 0.05 <= seconds["products with K"] < 0.1


def test_the_functions_are_themselves_again_after_an_error() -> None:
    before = fused.contract, LinearSystem.matmul

    def fail_inside() -> None:
        with timed(CPU):
            assert fused.contract is not before[0]
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert (fused.contract, LinearSystem.matmul) == before


def test_the_command_writes_its_figures(tmp_path) -> None:
    path, table = tmp_path / "stages.json", tmp_path / "stages.md"
    options = ["--dataset", "robot_arm", "--sizes", "300", "--steps", "5", "--json", str(path)]
    options += ["--markdown", str(table)]
    result = CliRunner().invoke(app, ["bench", "stages", *options])
    assert result.exit_code == 0, result.output
    (size,) = json.loads(path.read_text())["sizes"]
    assert size["n"] == 300
    assert set(size["seconds"]) == set(STAGES)
    assert REST in table.read_text()


@pytest.mark.parametrize("options", [["--sizes", "many"], ["--dtype", "int8"], ["--dataset", "nothing"]])
def test_the_command_refuses_what_it_cannot_measure(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", "stages", *options]).exit_code == 2
