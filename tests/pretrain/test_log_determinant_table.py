"""The published table of the learned log determinant, from the weights that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.log_determinant.evaluate import METHODS, SETS, measure, system_at, table, trajectory

STORED = json.loads((Path(__file__).parents[2] / "pretrain" / "results" / "log_determinant.json").read_text())


@pytest.mark.parametrize("rank", [128, 400])
def test_the_shipped_weights_reproduce_a_stored_row(rank: int) -> None:
    (row,) = [
        record
        for record in STORED["records"]
        if (record["data"], record["n"], record["step"], record["rank"]) == ("robot_arm", 1000, 3, rank)
    ]
    ((_, state),) = trajectory("robot_arm", 1000, (3,), seed=STORED["seed"])
    system, target, exact = system_at("robot_arm", 1000, state, seed=STORED["seed"])
    found = measure(system, target, exact, rank, mlp=None)
    assert found["z"] == pytest.approx(row["z"], abs=1e-4)
    assert found["learned"] == pytest.approx(row["learned"], abs=5e-4)
    width = float(found["upper"]) - float(found["lower"])
    assert width == pytest.approx(row["upper"] - row["lower"], rel=0.05)


def test_the_stored_summary_is_that_of_the_stored_records() -> None:
    records = [record for record in STORED["records"] if record["data"] in SETS]
    assert table(records) == STORED["uci"]


def test_the_targets_hold_on_unseen_uci_kernels() -> None:
    rows = {row["method"]: row for row in STORED["uci"]}
    assert set(rows) == set(METHODS)
    learned = rows["learned"]
    assert learned["median"] <= 0.003
    assert learned["p95"] <= 0.01
    assert 0.85 <= learned["coverage"] <= 0.97
    assert learned["median"] < rows["lanczos10"]["median"]
