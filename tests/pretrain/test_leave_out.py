"""The leave-one-out experiment: what is left out is not trained on, and the file says who was tested on what."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pretrain.configs import Stage
from pretrain.experiments import leave_out
from pretrain.experiments.leave_out import BASE, LEFT_OUT, SIZES, main, trainings
from pretrain.train import mixture_of


def test_each_training_lacks_the_family_it_is_named_after() -> None:
    configs = trainings(5)
    everything = {family.name for family in mixture_of(configs["all"]).families}
    for name in LEFT_OUT:
        assert {family.name for family in mixture_of(configs[f"without {name}"]).families} == everything - {name}
    assert [family.name for family in mixture_of(configs["wishart"]).families] == ["wishart"]
    with pytest.raises(ValueError, match="no structured family named toeplitz"):
        mixture_of(dataclasses.replace(BASE, without=("toeplitz",)))


def test_a_short_run_tests_every_training_on_what_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave_out, "SIZES", (15, 20))
    monkeypatch.setattr("pretrain.train.plot_curves", lambda *_, **__: None)  # of five trainings
    small = dataclasses.replace(BASE, curriculum=(Stage(1.0, 10, 15, 6),))
    monkeypatch.setattr(leave_out, "BASE", small)
    main(["--out", str(tmp_path), "--seeds", "1", "--steps", "2", "--draws", "2"])
    rows = json.loads((tmp_path / "leave_out.json").read_text())["rows"]
    cells = {(row["trained on"], row["family"], row["n"]) for row in rows}
    assert len(cells) == len(rows) == len(LEFT_OUT) * len(SIZES) * 3
    assert all(row["trained on"] in ("all", "wishart", f"without {row['family']}") for row in rows)
    assert all(row["missed_trace"] >= 1 - 1e-9 for row in rows)
    assert (tmp_path / "leave_out.png").stat().st_size > 10_000
