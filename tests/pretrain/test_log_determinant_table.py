"""The published table of the learned log determinant, from the weights that are shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gp_rangeformer import settings
from gp_rangeformer.logdet import learned
from pretrain.log_determinant import evaluate, rescore
from pretrain.log_determinant.evaluate import METHODS, SETS, measure, system_at, table, trajectory

RESULTS = Path(__file__).parents[2] / "pretrain" / "results"
STORED = json.loads((RESULTS / "log_determinant.json").read_text())
LARGE = json.loads((RESULTS / "log_determinant_large.json").read_text())  # UCI kernels at n = 16,000 and 36,000


@pytest.mark.parametrize("rank", [128, 400])
def test_the_shipped_weights_reproduce_a_stored_row(rank: int) -> None:
    (row,) = [
        record
        for record in STORED["records"]
        if (record["data"], record["n"], record["step"], record["rank"]) == ("robot_arm", 1000, 3, rank)
    ]
    ((_, state),) = trajectory("robot_arm", 1000, (3,), seed=STORED["seed"])
    system, target, exact = system_at("robot_arm", 1000, state, seed=STORED["seed"])
    found, _ = measure(system, target, exact, rank, mlp=None)
    assert found["z"] == pytest.approx(row["z"], abs=1e-4)
    assert found["learned"] == pytest.approx(row["learned"], abs=5e-4)
    width = float(found["upper"]) - float(found["lower"])
    assert width == pytest.approx(row["upper"] - row["lower"], rel=0.05)


@pytest.mark.parametrize("stored", [STORED, LARGE], ids=["small", "large"])
def test_the_stored_summary_is_that_of_the_stored_records(stored: dict[str, Any]) -> None:
    records = [record for record in stored["records"] if record["data"] in SETS]
    assert table(records) == stored["uci"]
    for n, rows in stored["uci_by_size"].items():
        assert table([record for record in records if record["n"] == int(n)]) == rows


def test_the_targets_hold_on_unseen_uci_kernels() -> None:
    rows = {row["method"]: row for row in STORED["uci"]}
    assert set(rows) == set(METHODS)
    network = rows["learned"]
    assert network["median"] <= 0.003
    assert network["p95"] <= 0.01
    assert network["coverage"] >= 0.9
    assert network["median"] < rows["lanczos10"]["median"]


@pytest.mark.parametrize("stored", [STORED, LARGE], ids=["small", "large"])
def test_the_stated_interval_covers_at_every_size(stored: dict[str, Any]) -> None:
    for n, rows in stored["uci_by_size"].items():
        (network,) = (row for row in rows if row["method"] == "learned")
        assert network["coverage"] >= 0.8, n


@pytest.mark.parametrize(("stored", "fewest"), [(STORED, 170), (LARGE, 18)], ids=["small", "large"])
def test_what_is_accepted_at_the_default_tolerance_is_within_it(stored: dict[str, Any], fewest: int) -> None:
    """And little of it is left to Lanczos: 25 of 200, and 8 of 30 where n is at least 16,000."""
    tolerance = settings.solver.value().logdet_tolerance
    records = [record for record in stored["records"] if record["data"] in SETS]
    accepted = [r for r in records if not r["refusal"] and 0.5 * (r["upper"] - r["lower"]) <= tolerance]
    assert len(accepted) >= fewest
    assert max(abs(record["learned"] - record["z"]) for record in accepted) <= tolerance


def test_the_largest_size_that_is_answered_was_measured() -> None:
    assert max(record["n"] for record in LARGE["records"]) == learned._LARGEST_SIZE


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(result file, evidence) of one simulator at one stage."""
    folder = tmp_path_factory.mktemp("evaluated")
    options = ["--sets", "robot_arm", "--sizes", "400", "--ranks", "32,64", "--stages", "2", "--no-simulated"]
    files = ["--out", str(folder / "result.json"), "--evidence", str(folder / "evidence.npz")]
    done = CliRunner().invoke(evaluate.main, [*options, *files])
    assert done.exit_code == 0, done.output
    return folder / "result.json", folder / "evidence.npz"


def test_kept_evidence_gives_the_same_answers_as_the_systems(evaluated: tuple[Path, Path]) -> None:
    result, evidence = evaluated
    before = result.read_bytes()
    altered = json.loads(before)
    for record in altered["records"]:
        record |= {"learned": 0.0, "lower": 0.0, "upper": 0.0, "refusal": "?"}
    result.write_text(json.dumps(altered))
    done = CliRunner().invoke(rescore.main, [str(evidence), "--out", str(result)])
    assert done.exit_code == 0, done.output
    assert result.read_bytes() == before


def test_evidence_of_other_systems_is_refused(evaluated: tuple[Path, Path]) -> None:
    result, evidence = evaluated
    records = json.loads(result.read_text())["records"]
    with pytest.raises(ValueError, match="holds 2 systems, the result file 1 records"):
        rescore.rescored(records[:1], evidence)
    with pytest.raises(ValueError, match=r"row 0 of .* belongs to another system"):
        rescore.rescored(records[::-1], evidence)
