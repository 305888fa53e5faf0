"""One size with its peers, the run that can be resumed, its tables and figures, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench import peer_run, peers
from gp_rangeformer.lab.bench.contenders import Evaluation, Problem, UnavailableError
from gp_rangeformer.lab.bench.entrants import Entrant, parse_peers
from gp_rangeformer.lab.bench.memory import measure_memory
from gp_rangeformer.lab.bench.peer_figures import FIGURES, write_peer_figures
from gp_rangeformer.lab.bench.peer_run import Plan, parse_sizes, read_sizes, run
from gp_rangeformer.lab.bench.peer_tables import growth_table, relative_seconds, size_table
from gp_rangeformer.lab.bench.peers import Row, Size, measure_size
from gp_rangeformer.lab.bench.replay import Outcome
from gp_rangeformer.lab.bench.resumed import PlanError
from gp_rangeformer.lab.cli import app
from gp_rangeformer.lab.compare.audit import Parameters

N, STEPS = 200, 5
PLAN = Plan("robot_arm", None, "cholesky,exact,rangeformer", STEPS, 0, "float32", "cpu")
NAMES = ["floor", "host floor", "cholesky", "exact", "rangeformer"]


class Scripted:
    """Takes the seconds it is told; an exception among them is raised, negative ones come with an infinite gradient."""

    name = "scripted"

    def __init__(self, seconds: Sequence[float | Exception]) -> None:
        self.seconds = list(seconds)

    def evaluate(self, state: Parameters) -> Evaluation:
        found = self.seconds.pop(0)
        if isinstance(found, Exception):
            raise found
        return Evaluation(found, found, None, next(iter(state.values())) / (found >= 0))


def scripted(*seconds: float | Exception) -> Entrant:
    return Entrant("scripted", "as told", lambda problem: Scripted(seconds))


def problem() -> Problem:
    return Problem(datasets.load("robot_arm", n=N, n_test=1), "matern32")


def row_of(entrant: Entrant, earlier: Sequence[Size] = (), patience: float = 60.0) -> Row:
    (row,) = measure_size(problem(), [entrant], earlier, steps=4, patience=patience, audit=False).rows
    return row


@pytest.fixture(scope="module")
def size() -> Size:
    return measure_size(problem(), parse_peers(PLAN.solvers), [], steps=STEPS)


def resized(size: Size, n: int, factor: float) -> Size:
    """As if it had been measured at another n, every contender ``factor`` times as slow."""
    rows = [
        replace(row, outcome=replace(row.outcome, seconds=[factor * second for second in row.outcome.seconds]))
        for row in size.rows
    ]
    return replace(size, n=n, rows=rows)


def test_every_contender_is_measured(size: Size) -> None:
    assert [row.name for row in size.rows] == NAMES
    for row in size.rows:
        assert row.complete
        assert len(row.outcome.seconds) == STEPS
        assert row.first_call is not None
        assert row.first_call > 0


def test_errors_are_measured_for_all_but_the_floors(size: Size) -> None:
    errors = {row.name: row.outcome.gradient_error for row in size.rows}
    assert [name for name, found in errors.items() if not found] == NAMES[:2]
    assert max(errors["exact"]) < 1e-4
    assert max(errors["cholesky"]) < 1e-4
    assert 1e-4 < max(errors["rangeformer"]) < 0.5


def test_without_an_audit_there_are_no_errors() -> None:
    found = measure_size(problem(), parse_peers("exact"), [], steps=4, audit=False, first_calls=False)
    assert all(not row.outcome.value_error for row in found.rows)
    assert all(row.first_call is None for row in found.rows)


HELD = """
import torch
from gp_rangeformer.lab.bench.entrants import Entrant
from gp_rangeformer.lab.bench.memory import measure_memory
from tests.lab.bench.test_peers import Scripted, problem

class Holder(Scripted):
    def evaluate(self, state):
        for blocks in (1, 3, 2):
            held = [torch.ones(8, 2**18) for _ in range(blocks)]  # 8 MiB each
            del held
        return super().evaluate(state)

holder = Entrant("scripted", "", lambda problem: Holder([1.0]))
print(measure_memory(holder, problem(), [{"a": torch.ones(1)}]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's high-water mark")
def test_the_peak_is_what_was_held_at_the_same_time() -> None:
    # In a process of its own: earlier tests leave gaps in malloc's heap, and blocks in them are not given back.
    command, root = [sys.executable, "-c", HELD], Path(__file__).parents[3]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120)
    peak = float(run.stdout.splitlines()[-1])
    # Not the 48 MiB of all of them.
    assert 22 < peak < 36


def test_as_many_steps_are_taken_as_fill_the_memory() -> None:
    contender = Scripted([1.0] * 5)
    states = [{"a": torch.ones(1)}] * 5
    measure_memory(Entrant("scripted", "", lambda problem: contender, steps_to_fill=4), problem(), states)
    assert len(contender.seconds) == 1


def test_a_contender_that_cannot_run_is_left_out_with_the_reason() -> None:
    def build(problem: Problem) -> Any:
        raise UnavailableError("no compiler")

    row = row_of(Entrant("absent", "", build))
    assert row.outcome.left_out == "no compiler"
    assert row.seconds() is None
    assert row.peak is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([RuntimeError("compilation failed\nlog")], "failed at its first call: RuntimeError: compilation failed"),
        ([0.1, 0.1, ValueError("not positive definite")], "failed at step 2: ValueError: not positive definite"),
        ([0.1, 0.1, -1.0], "failed at step 2: value or gradient is not finite"),
        ([0.1, 61.0], "step 1 took 61 s, longer than the patience of 60 s"),
    ],
)
def test_a_contender_that_fails_or_dawdles_is_left_out_with_the_reason(
    seconds: list[float | Exception], said: str
) -> None:
    assert row_of(scripted(*seconds)).outcome.left_out == said


def test_one_slow_step_later_on_costs_nobody_the_place() -> None:
    assert row_of(scripted(0.1, 0.1, 61.0, 0.1, 0.1)).complete


def test_the_first_call_is_not_among_the_steps() -> None:
    row = row_of(scripted(7.0, 1.0, 1.0, 1.0, 2.0))
    assert row.first_call == 7.0
    assert row.outcome.seconds == [1.0, 1.0, 1.0, 2.0]
    assert row.seconds() == 2.0


def test_a_contender_that_would_not_fit_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "free_bytes", lambda device: 399 * 2**20)
    earlier = Size(N // 2, 8, "matern32", "a machine", 1, [Row(Outcome("scripted", [0.1]), "", peak=100.0)])
    row = row_of(scripted(), [earlier])
    assert row.outcome.left_out == "400 MiB foreseen from n = 100, more than the 399 MiB that are free"


def test_a_contender_that_was_too_slow_before_is_not_tried_again() -> None:
    outcome = Outcome("scripted", [61.0], left_out="step 1 took 61 s, longer than the patience of 60 s")
    row = row_of(scripted(), [Size(N // 2, 8, "matern32", "a machine", 1, [Row(outcome, "")])])
    assert row.outcome.left_out is not None
    assert "foreseen from n = 100" in row.outcome.left_out


def test_a_size_survives_its_json(size: Size) -> None:
    assert Size.from_json(json.loads(json.dumps(size.to_json()))) == size


def test_seconds_compare_within_a_step(size: Size) -> None:
    found = relative_seconds(size, "floor")
    assert found["floor"] == 1.0
    assert list(found) == NAMES
    assert relative_seconds(size, "gpflash") == {}


def test_the_table_has_a_row_per_contender_and_the_reason_of_who_was_left_out(size: Size) -> None:
    absent = Row(Outcome("keops", left_out="pykeops is not installed"), "")
    table = size_table(replace(size, rows=[*size.rows, absent]), PLAN)
    assert [row[0] for row in table.rows] == [*NAMES, "keops"]
    assert set(table.rows[-1][1:]) == {"-"}
    assert "keops: left out: pykeops is not installed" in table.notes
    assert all(len(row) == len(table.headers) for row in table.rows)


def test_the_growth_table_has_the_exponent_of_every_contender(size: Size) -> None:
    table = growth_table([size, resized(size, 2 * N, 8.0)], PLAN)
    assert [row[0] for row in table.rows] == NAMES
    assert {row[-2] for row in table.rows} == {"3.00"}


def test_every_figure_is_written_and_names_every_contender(size: Size, tmp_path: Path) -> None:
    sizes = [size, resized(size, 2 * N, 4.0)]
    written = write_peer_figures(sizes, PLAN, tmp_path)
    assert [path.name for path in written] == [f"robot_arm-bench-{name}.png" for name in FIGURES]
    assert all(path.stat().st_size > 0 for path in written)
    labels = [text.get_text() for text in FIGURES["seconds"](sizes, PLAN).axes[0].texts]
    assert labels == [f"{name}  $n^{{2.00}}$" for name in NAMES]


def test_a_resumed_run_does_not_repeat_a_size(size: Size, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(problem: Problem, *arguments: Any, **options: Any) -> Size:
        measured.append(problem.n)
        return replace(size, n=problem.n)

    monkeypatch.setattr(peer_run, "measure_size", measure)
    path = tmp_path / "peers.json"
    for sizes in ([200], [200, 300]):
        found = run(PLAN, sizes, patience=60, audit_largest=0, path=path)
        assert [each.n for each in found] == sizes
    assert measured == [200, 300]
    assert [each.n for each in read_sizes(path, PLAN)] == [200, 300]


def test_a_file_of_another_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"plan": {**vars(PLAN), "steps": 99}, "sizes": []}))
    with pytest.raises(PlanError, match="steps 99, not 5"):
        read_sizes(path, PLAN)


def test_sizes_are_sorted_and_taken_once() -> None:
    assert parse_sizes("400, 200,400") == [200, 400]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "1000,many"], "whole numbers"),
        (["--sizes", "50"], "n = 100 on"),
        (["--solvers", "svgp"], "no solver 'svgp'"),
        (["--dataset", "nothing"], "no data set 'nothing'"),
        (["--kernel", "trend-seasonal"], "'co2' only"),
        (["--dtype", "float16"], "float32 or float64"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "--dataset", "robot_arm", *options])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text('{"plan": ')
    result = CliRunner().invoke(app, ["bench", "--dataset", "robot_arm", "--json", str(path)])
    assert result.exit_code == 2
    assert "not a result of this command" in " ".join(result.output.replace("│", " ").split())


def test_the_command_writes_numbers_tables_and_figures(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("json", "markdown", "figures")}
    written = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    options = ["--dataset", "robot_arm", "--sizes", "150", "--solvers", "exact", "--steps", "4", *written]
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 0, result.output
    assert [row["outcome"]["name"] for row in json.loads(paths["json"].read_text())["sizes"][0]["rows"]] == [
        "floor",
        "host floor",
        "exact",
    ]
    assert "| exact |" in paths["markdown"].read_text()
    assert len(list(paths["figures"].glob("*.png"))) == len(FIGURES)


def test_learning_is_still_a_command_of_its_own() -> None:
    result = CliRunner().invoke(app, ["bench", "learning", "--sizes", "none"])
    assert result.exit_code == 2
    assert "--sizes and --seeds" in " ".join(result.output.replace("│", " ").split())
