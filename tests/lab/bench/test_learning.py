"""Replays of one trajectory by several contenders, and the table of what every part is worth."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gp_rangeformer import settings
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench import contenders as contenders_module
from gp_rangeformer.lab.bench import learning as learning_module
from gp_rangeformer.lab.bench.contenders import ModelContender
from gp_rangeformer.lab.bench.learning import PARTS, Cell, best_fixed, grids, learning_table, measure_cell
from gp_rangeformer.lab.bench.replay import WARM_UP, Outcome, record_trajectory, replay
from gp_rangeformer.lab.cli import app
from gp_rangeformer.lab.compare.audit import ExactEvaluator, Parameters, snapshot
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.datasets import Dataset

N, STEPS, KERNEL = 150, 5, "matern32"
SMALL = {"min_size": 1, "rank": 40, "num_probes": 16}
CONTENDERS = (
    SolverSpec("exact", "exact", "float64"),
    SolverSpec("certified", "rangeformer", "float64", {**SMALL, "logdet": "lanczos"}),
    SolverSpec("refusing", "rangeformer", "float64", SMALL),  # fewer points than the learned tail was trained on
    SolverSpec("host's kernels", "exact", "float64", {"fused_kernels": False}),
    SolverSpec("cg", "cg", "float64"),
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return datasets.load("robot_arm", n=N, n_test=10)


@pytest.fixture(scope="module")
def states(dataset: Dataset) -> list[Parameters]:
    return record_trajectory(dataset, KERNEL, CONTENDERS[0], STEPS, lr=0.1)


def models(dataset: Dataset, specs: Sequence[SolverSpec]) -> list[ModelContender]:
    return [ModelContender(spec, dataset, KERNEL) for spec in specs]


@pytest.fixture(scope="module")
def outcomes(dataset: Dataset, states: list[Parameters]) -> dict[str, Outcome]:
    found = replay(models(dataset, CONTENDERS), states, ExactEvaluator(dataset, KERNEL), audit_every=2)
    return {outcome.name: outcome for outcome in found}


@pytest.fixture(scope="module")
def cell(dataset: Dataset) -> Cell:
    return measure_cell(dataset, steps=STEPS, seed=4)


def test_a_trajectory_holds_the_parameters_before_every_step(states: list[Parameters]) -> None:
    assert len(states) == STEPS
    for old, new in itertools.pairwise(states):
        assert all(not torch.equal(old[name], new[name]) for name in old)


def test_a_trajectory_depends_on_its_inputs_alone(dataset: Dataset, states: list[Parameters]) -> None:
    again = record_trajectory(dataset, KERNEL, CONTENDERS[0], STEPS, lr=0.1)
    assert all(torch.equal(old[name], new[name]) for old, new in zip(states, again, strict=True) for name in old)


def test_all_contenders_see_the_same_parameters_in_changing_order(
    dataset: Dataset, states: list[Parameters], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, dict[str, Tensor]]] = []
    built = 0

    def watched(*arguments: Any) -> Any:
        nonlocal built
        number, built = built, built + 1
        model, likelihood = original(*arguments)
        forward = model.forward

        def watching(x: Tensor) -> Any:
            seen.append((number, snapshot(model)))
            return forward(x)

        model.forward = watching  # GPyTorch's modules call no hooks
        return model, likelihood

    original = contenders_module.build_model
    monkeypatch.setattr(contenders_module, "build_model", watched)
    contenders = models(dataset, CONTENDERS[:3])
    replay(contenders, states, exact=None, audit_every=100)
    assert len(seen) == STEPS * len(contenders)
    for position, (_, found) in enumerate(seen):
        expected = states[position // len(contenders)]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    orders = [tuple(number for number, _ in seen[3 * step : 3 * step + 3]) for step in range(STEPS)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len(set(orders)) > 2


@pytest.mark.parametrize("spec", CONTENDERS, ids=lambda spec: spec.name)
def test_an_outcome_has_a_number_for_every_step_and_an_error_for_every_audited_one(
    spec: SolverSpec, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[spec.name]
    assert len(outcome.seconds) == len(outcome.iterations) == len(outcome.passes) == STEPS
    assert len(outcome.value_error) == len(outcome.gradient_error) == 3  # steps 0, 2 and 4
    assert min(outcome.seconds) > 0
    assert outcome.fallbacks == 0


def test_the_last_step_is_always_audited(dataset: Dataset, states: list[Parameters]) -> None:
    (outcome,) = replay(models(dataset, CONTENDERS[:1]), states[:4], ExactEvaluator(dataset, KERNEL), audit_every=2)
    assert len(outcome.value_error) == 3  # steps 0, 2 and 3


def test_errors_are_those_against_the_exact_answer(outcomes: dict[str, Outcome]) -> None:
    for name in ("exact", "host's kernels"):
        assert max(outcomes[name].value_error) < 1e-10
        assert max(outcomes[name].gradient_error) < 1e-8
    assert 1e-6 < max(outcomes["certified"].value_error) < 0.05
    assert 1e-4 < max(outcomes["certified"].gradient_error) < 1


def test_iterations_and_passes_are_counted_for_the_solver_and_for_the_host(outcomes: dict[str, Outcome]) -> None:
    assert sum(outcomes["exact"].iterations) == 0
    assert min(outcomes["cg"].iterations) > 0
    for name in ("certified", "cg"):
        assert all(p > i for p, i in zip(outcomes[name].passes, outcomes[name].iterations, strict=True))
    assert sum(outcomes["certified"].iterations) > 0


def test_what_the_reports_noted_is_counted(outcomes: dict[str, Outcome]) -> None:
    handed_over = "the learned log determinant handed over to Lanczos"
    assert outcomes["refusing"].notes[handed_over] == STEPS
    assert handed_over not in outcomes["certified"].notes


def test_a_summary_leaves_out_the_warm_up() -> None:
    outcome = Outcome("a", [9.0] * WARM_UP + [1.0, 2.0, 6.0], [90] * WARM_UP + [1, 2, 3], [90] * WARM_UP + [4, 5, 6])
    outcome.value_error, outcome.gradient_error = [0.1, 0.3], [0.5]
    assert outcome.summary() == pytest.approx(
        {
            "seconds": 2,
            "iterations": 2,
            "passes": 5,
            "value_error": 0.2,
            "largest_value_error": 0.3,
            "gradient_error": 0.5,
            "fallbacks": 0,
        }
    )


def test_cores_are_processor_seconds_over_seconds_after_the_warm_up() -> None:
    outcome = Outcome("a", [1.0] * WARM_UP + [2.0, 2.0], processor=[9.0] * WARM_UP + [3.0, 1.0])
    assert outcome.cores() == 1.0


def test_outcomes_written_without_processor_seconds_can_be_read(cell: Cell) -> None:
    content = json.loads(json.dumps(cell.to_json()))
    for outcome in content["outcomes"]:
        del outcome["processor"], outcome["left_out"]
    assert [outcome.seconds for outcome in Cell.from_json(content).outcomes] == [o.seconds for o in cell.outcomes]


def test_a_replay_leaves_the_flag_off(outcomes: dict[str, Outcome]) -> None:
    assert settings.rangeformer.off()


def test_every_contender_is_one_setting_away_from_the_defaults_or_names_what_it_changes() -> None:
    assert PARTS[0].overrides == {}
    names = [contender.spec("float32").name for contender in PARTS]
    assert len(set(names)) == len(PARTS)
    for contender in PARTS:
        with contender.spec("float32").active():
            present = settings.current()
        flat = [{**values, **values["solver"]} for values in (settings.current(), present)]  # type: ignore[dict-item]
        changed = {name for name, value in flat[0].items() if flat[1][name] != value} - {"solver"}
        assert changed == {"rangeformer", "min_size", *contender.overrides}


def test_a_cell_survives_its_json(cell: Cell) -> None:
    content = json.loads(json.dumps(cell.to_json()))
    assert Cell.from_json(content) == cell
    assert content["summaries"][cell.outcomes[0].name] == pytest.approx(cell.outcomes[0].summary())


def test_the_table_has_a_row_per_contender_relative_to_the_defaults(cell: Cell) -> None:
    rows = learning_table([cell, cell])
    assert [(row["part"], row["state"]) for row in rows] == [(part.part, part.state) for part in PARTS]
    assert rows[0]["ratio"] == pytest.approx(1)
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    once = learning_table([cell])
    assert rows[1]["ratio"] == pytest.approx(once[1]["ratio"])
    assert rows[1]["value_error"] == pytest.approx(once[1]["value_error"])


def timed(seconds: Sequence[float]) -> Outcome:
    return Outcome("x", list(seconds), [1] * 6, [1] * 6, [0.0], [0.0])


def test_ratios_are_taken_within_a_step_after_the_warm_up() -> None:
    reference = timed([1, 1, 1, 1, 2, 4])
    twice = timed([99, 99, 99, 2, 4, 8])
    outcomes = [reference, *[twice] * (len(PARTS) - 1)]
    assert [row["ratio"] for row in learning_table([Cell("a", N, 0, 6, outcomes)])] == pytest.approx(
        [1.0, *[2.0] * (len(PARTS) - 1)]
    )


def test_sizes_come_in_tables_of_their_own(cell: Cell) -> None:
    other = Cell("other", 300, 1, STEPS, cell.outcomes)
    tables = grids([cell, other, cell], "some machine")
    assert [table.title for table in tables] == ["n = 150", "n = 300"]
    assert all(len(table.rows) == len(PARTS) for table in tables)
    assert all(len(row) == len(table.headers) for table in tables for row in table.rows)


def test_the_best_fixed_effort_is_found_for_every_set() -> None:
    efforts = [number for number, contender in enumerate(PARTS) if contender.effort]
    faster, others = timed([1, 1, 1, 0.5, 0.5, 0.5]), timed([1, 1, 1, 2, 2, 2])
    outcomes = [timed([1] * 6), *[others] * (len(PARTS) - 1)]
    improved = list(outcomes)
    improved[efforts[1]] = faster
    best = best_fixed([Cell("a", N, 0, 6, outcomes), Cell("b", N, 0, 6, improved), Cell("b", N, 1, 6, improved)])
    assert best["a"] == (PARTS[0].state, 1.0)
    assert best["b"] == (PARTS[efforts[1]].name, pytest.approx(0.5))
    # What answers another question does not compete.
    assert not any(PARTS[number].part.startswith(("log", "probes", "kernel", "all")) for number in efforts)


def test_cells_of_other_steps_or_contenders_stay_in_the_file(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(loaded: Dataset, *, steps: int, seed: int, device: str) -> Cell:
        measured.append((steps, seed))
        return replace(cell, data=loaded.name, n=N, seed=seed, steps=steps)

    monkeypatch.setattr(learning_module, "measure_cell", measure)
    file = tmp_path / "cells.json"
    earlier = replace(cell, data="robot_arm", seed=0, steps=9, outcomes=cell.outcomes[:3])
    file.write_text(json.dumps({"cells": [earlier.to_json()]}))
    command = ["bench", "learning", "--dataset", "robot_arm", "--sizes", str(N), "--json", str(file)]
    for steps, seeds in (("9", "0"), ("5", "0,1"), ("9", "0,1")):
        result = CliRunner().invoke(app, [*command, "--steps", steps, "--seeds", seeds])
        assert result.exit_code == 0, result.output
    assert measured == [(9, 0), (5, 0), (5, 1), (9, 1)]
    kept = [Cell.from_json(content) for content in json.loads(file.read_text())["cells"]]
    assert [(each.steps, each.seed, each.complete) for each in kept] == [
        (9, 0, False),
        (9, 0, True),
        (5, 0, True),
        (5, 1, True),
        (9, 1, True),
    ]
