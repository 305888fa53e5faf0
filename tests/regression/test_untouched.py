"""Columns that nobody uses are handed through as their file has them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from gp_rangeformer.regression import TableRegression, read_table
from tests.lab.commands import invoke

LARGE = 2**53 + 1  # which no float is
WRITTEN = {
    "id": ["00001", "00002", "00010"],
    "key": [str(LARGE), "1e5", "1.50"],
    "code": ["NA", "?", ""],
    "flag": ["TRUE", "false", "true"],
    "day": ["2024-01-31", "31.01.2024", "2024/02/01 9:30"],
    "note": ["a, b", 'say "no"', "1,5"],
}


@pytest.mark.parametrize("sep", [",", "\t"])
def test_texts_are_handed_through_as_they_are_written(tmp_path: Path, sep: str) -> None:
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({"a": ["1e0", "NA", "3"], **WRITTEN})
    frame.to_csv(path, sep=sep, index=False)
    table = read_table(path, used=("a",))
    assert table["a"].tolist()[::2] == [1.0, 3.0]
    assert {name: table[name].tolist() for name in WRITTEN} == WRITTEN


def test_values_of_excel_files_are_handed_through(tmp_path: Path) -> None:
    day = datetime(2024, 1, 31)
    columns = {"a": [1, 2, 3], "id": ["00001", "2", None], "k": [7, None, 9], "day": [day, None, day]}
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    table = read_table(tmp_path / "t.xlsx", used=("a",))
    written = table.drop(columns="a").to_csv(index=False).split()
    assert written == ["id,k,day", "00001,7,2024-01-31", "2,,", ",9,2024-01-31"]


def test_values_of_parquet_files_are_handed_through(tmp_path: Path) -> None:
    columns = {"a": [1.5, None], "k": [LARGE, None], "x.y": [None, LARGE], "id": ["00001", "NA"], "whole": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", used=("a",))
    written = table.drop(columns="a").to_csv(index=False).split()
    assert written == ["k,x.y,id,whole", f"{LARGE},,00001,1", f",{LARGE},NA,2"]
    labelled = pd.DataFrame({"k": pd.Series([LARGE, None], dtype="Int64", index=["p", "q"])})
    labelled.to_parquet(tmp_path / "labelled.parquet")
    assert read_table(tmp_path / "labelled.parquet", used=("a",))["k"].tolist()[0] == LARGE


def test_predict_changes_no_column_that_it_does_not_use(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=20)})
    TableRegression.fit(frame.assign(y=frame["a"] ** 2), target="y", kernel="rbf").save(tmp_path / "m")
    pd.DataFrame({"a": [0.5, 1.0, 2.0], "y": [1, 2, 3], **WRITTEN}).to_csv(tmp_path / "new.csv", index=False)
    result = invoke("predict", tmp_path / "m", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    assert "RMSE" in result.output
    written = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
    assert {name: written[name].tolist() for name in WRITTEN} == WRITTEN
