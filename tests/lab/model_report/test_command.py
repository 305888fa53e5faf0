"""``gp-rangeformer report`` of a kept model, and what it refuses."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.lab.model_report import render, writing
from gp_rangeformer.regression import TableRegression
from tests.lab.commands import invoke
from tests.lab.model_report.pages import Page


def test_the_command_writes_beside_the_model_with_held_out_rows(folder: Path) -> None:
    result = invoke("report", folder)
    assert result.exit_code == 0, result.output
    written = folder / "report.html"
    assert f"written: {written}" in result.stdout
    held = pd.read_csv(folder / "held_out.csv")
    error = float(np.sqrt(np.mean((held["distance"] - held["mean"]) ** 2)))
    inside = float(np.mean((held["lower95"] <= held["distance"]) & (held["distance"] <= held["upper95"])))
    text = Page(written.read_text("utf-8")).text
    assert f"On 30 held-out rows the RMSE is {error:.4g}. {inside:.1%} of them" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns="lower95"), "have no column 'lower95'"),
        (lambda rows: rows.drop(columns="distance"), "have no column 'distance'"),
        (lambda rows: rows.assign(mean="much"), "column 'mean' holds 'much'"),
        (lambda rows: rows.assign(upper95=math.inf), "column 'upper95' is infinite"),
    ],
)
def test_held_out_rows_that_were_changed_are_refused_by_name(
    folder: Path, tmp_path: Path, change: Any, said: str
) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    change(pd.read_csv(path / "held_out.csv", index_col="line")).to_csv(path / "held_out.csv")
    result = invoke("report", path)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "leave the table as it was written, or remove it" in result.stderr


def test_held_out_rows_with_a_missing_cell_are_not_counted(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    rows = pd.read_csv(path / "held_out.csv", index_col="line")
    for number, name in enumerate(("distance", "mean", "lower95")):
        rows.iloc[number, rows.columns.get_loc(name)] = None
    rows.to_csv(path / "held_out.csv")
    assert invoke("report", path).exit_code == 0
    assert "On 27 held-out rows" in Page((path / "report.html").read_text("utf-8")).text


@pytest.mark.parametrize("scale", [1e-300, 1e100])
def test_the_share_that_is_explained_does_not_depend_on_the_unit(scale: float) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=40)})
    frame["y"] = (frame["a"] + random.normal(size=40)) * scale
    other = frame.assign(y=frame["y"] / scale)
    texts = [Page(render(TableRegression.fit(each, target="y", kernel="rbf"))).text for each in (frame, other)]
    found = [re.search(r"variance explained ([\d.]+)%", text) for text in texts]
    assert found[0] is not None
    assert found[1] is not None
    assert float(found[0][1]) == pytest.approx(float(found[1][1]), abs=0.11)


def test_the_command_refuses_what_is_no_model(tmp_path: Path) -> None:
    result = invoke("report", tmp_path, "--out", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "model.json is missing" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused_before_anything_is_computed(folder: Path, tmp_path: Path) -> None:
    result = invoke("report", folder, "--out", tmp_path / "none" / "r.html")
    assert result.exit_code == 2
    assert f"there is no folder {tmp_path / 'none'}" in result.stderr


def test_a_file_that_is_no_page_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("a,b\n1,2\n")
    result = invoke("report", folder, "--out", table)
    assert result.exit_code == 2
    assert f"--out {table} is there and no .html file: choose another path, or remove it" in result.stderr
    assert table.read_text() == "a,b\n1,2\n"
    for name in ("page.HTM", "new.page"):
        if name.endswith("HTM"):
            (tmp_path / name).write_text("former")
        assert invoke("report", folder, "--out", tmp_path / name).exit_code == 0
        assert "<html" in (tmp_path / name).read_text("utf-8")


def test_rows_that_were_dropped_before_the_split_are_on_the_page(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=60), "b": random.normal(size=60)})
    frame["y"] = frame["a"] + 0.1 * random.normal(size=60)
    frame.loc[:6, "b"] = None
    frame.to_csv(tmp_path / "table.csv", index=False)
    result = invoke("fit", tmp_path / "table.csv", "--target", "y", "--kernel", "rbf", "--out", tmp_path / "model")
    assert result.exit_code == 0, result.output
    note = "dropped 7 of 60 rows with missing values; most are missing in column 'b'"
    for arguments in ([], ["report", tmp_path / "model"]):
        assert not arguments or invoke(*arguments).exit_code == 0
        text = Page((tmp_path / "model" / "report.html").read_text("utf-8")).text
        assert note in text
        assert "Nothing was left out" not in text
    assert TableRegression.load(tmp_path / "model").notes == (note,)


def test_a_fit_that_is_kept_asks_for_its_report_which_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: TableRegression, held_out: pd.DataFrame) -> str:
        raise ArithmeticError(f"{model.target} of {len(held_out)} rows has no factor")

    monkeypatch.setattr(writing, "render", fails)
    path = tmp_path / "model"
    result = invoke("fit", "--dataset", "robot_arm", "--n", 50, "--n-test", 20, "--out", path)
    assert result.exit_code == 1
    assert f"{path / 'report.html'} was not written: distance of 20 rows has no factor" in result.stderr
    assert {file.name for file in path.iterdir()} == {"model.json", "model.safetensors", "held_out.csv", "fit.json"}
