"""What ``fit`` finds in the folder that it is to keep a model in, and leaves there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer import atomic
from gp_rangeformer.regression.files import REPORT
from tests.lab.commands import invoke, said


def rows(n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n)})
    return frame.assign(y=np.sin(frame["a"]) + 0.1 * rng.normal(size=n), z=frame["b"] + 0.1 * rng.normal(size=n))


def fit(frame: Any, out: Path, *options: object) -> Any:
    """``gp-rangeformer fit`` of the column y, unless ``options`` name another."""
    path = out.parent / "table.csv"
    frame.to_csv(path, index=False)
    return invoke("fit", path, "--target", "y", "--kernel", "rbf", "--dtype", "float64", "--out", out, *options)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``fit`` of y given a and b leaves it."""
    folder = tmp_path_factory.mktemp("fit") / "model"
    result = fit(rows(40), folder, "--drop", "z")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def model(fitted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(fitted, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("full", ["model.safetensors", "model.json"])
def test_a_disk_too_full_for_the_model_leaves_the_former_one_with_all_that_is_its(model, monkeypatch, full):
    before, original = contents(model), atomic._staged

    def fails(path: Path, content: bytes) -> str:
        if path.name == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, content)

    monkeypatch.setattr(atomic, "_staged", fails)
    result = fit(rows(60, seed=1), model, "--drop", "z")
    assert result.exit_code == 1
    assert f"Error: cannot write {model / full}" in said(result)
    assert "test RMSE" in result.stdout
    after = contents(model)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() <= {"unfinished.json"}


@pytest.mark.parametrize("copied", [("held_out.csv",), ("held_out.csv", "fit.json")])
def test_held_out_rows_of_another_model_are_not_reported(model, tmp_path, copied):
    other = tmp_path / "other"
    assert fit(rows(60, seed=1), other, "--drop", "z").exit_code == 0
    assert "held-out rows the RMSE is" in (model / REPORT).read_text("utf-8")
    for name in copied:
        shutil.copy(other / name, model / name)
    result = invoke("report", model)
    assert result.exit_code == 0, result.output
    assert f"Warning: {model / 'held_out.csv'} is of another model than the one beside it" in said(result)
    assert "held-out rows the RMSE is" not in (model / REPORT).read_text("utf-8")


def test_held_out_rows_of_the_model_are_reported(model):
    page = (model / REPORT).read_text("utf-8")
    result = invoke("report", model)
    assert "Warning" not in result.output
    assert "held-out rows the RMSE is" in page
    assert "held-out rows the RMSE is" in (model / REPORT).read_text("utf-8")
