"""Predictions beside their rows: every name once, and read as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.regression import TableError
from gp_rangeformer.regression.predictions import beside, read_predictions, with_interval
from tests.lab.commands import invoke, said


def titles(target: str, *names: str, index: str = "line") -> list[Any]:
    frame = pd.DataFrame(0.0, index=pd.Index([2, 3], name=index), columns=[*names, target])
    found = beside(with_interval(np.zeros(2), np.ones(2), frame.index), frame, target)
    return [found.index.name, *found.columns]


@pytest.mark.parametrize(
    ("target", "names", "wanted"),
    [
        ("y", ("a", "b"), ["line", "y", "a", "b"]),
        ("line", ("a",), ["line (index)", "line", "a"]),
        ("y", ("line", "line (index)"), ["line (index) (index)", "y", "line", "line (index)"]),
        ("y", ("mean", "mean (input)"), ["line", "y", "mean (input) (input)", "mean (input)"]),
        ("mean", ("mean (target)",), ["line", "mean (target)", "mean (target) (input)"]),
        ("y", ("sd (input) (input)", "sd"), ["line", "y", "sd (input) (input)", "sd (input)"]),
    ],
)
def test_no_two_columns_have_one_name(target: str, names: tuple[str, ...], wanted: list[str]) -> None:
    index, first, *others = wanted
    assert titles(target, *names) == [index, first, "mean", "sd", "lower95", "upper95", *others]


def table() -> Any:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60)})
    return frame.assign(y=np.sin(frame["a"]) + 0.1 * rng.normal(size=60))


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        ({"y": "line"}, "csv"),
        ({"y": "row"}, "parquet"),
        ({"y": "y "}, "parquet"),
        ({"a": "mean", "b": "mean (input)"}, "csv"),
        ({"y": "mean", "b": "mean (target)"}, "csv"),
    ],
)
def test_a_report_reads_what_fit_has_written(tmp_path: Path, names: dict[str, str], suffix: str) -> None:
    path, target = tmp_path / f"t.{suffix}", names.get("y", "y")
    frame = table().rename(columns=names)
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path, index=False)
    fitted = invoke("fit", path, "--target", target, "--kernel", "rbf", "--out", tmp_path / "m")
    assert fitted.exit_code == 0, fitted.output
    page = (tmp_path / "m" / "report.html").read_text("utf-8")
    result = invoke("report", tmp_path / "m")
    assert result.exit_code == 0, result.output
    again = (tmp_path / "m" / "report.html").read_text("utf-8")
    for each in (page, again):
        assert "On 6 held-out rows the RMSE is 0." in " ".join(each.split())


@pytest.mark.parametrize(("target", "title"), [("line", "line"), ("mean", "mean (target)")])
def test_neither_lines_nor_predictions_are_taken_for_the_target(tmp_path: Path, target: str, title: str) -> None:
    frame = table().rename(columns={"y": target})
    frame.to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "m"
    assert invoke("fit", tmp_path / "t.csv", "--target", target, "--out", out, "--kernel", "rbf").exit_code == 0
    held_out = out / "held_out.csv"
    result = invoke("predict", out, held_out, "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(held_out)
    error = np.sqrt(np.mean((rows["mean"] - rows[title]) ** 2))
    assert 0.01 < error < 1
    assert f"RMSE {error:.5g}, " in said(result)


def test_a_file_of_predictions_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"a\xff\n1\n", b"a,b\n1\n1,2,3\n"):
        (tmp_path / "p.csv").write_bytes(content)
        with pytest.raises(
            TableError, match=r"cannot read .*p.csv \(.*: leave the table as it was written, or remove it"
        ):
            read_predictions(tmp_path / "p.csv")
