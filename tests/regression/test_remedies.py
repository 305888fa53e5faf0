"""What is said of cells that cannot be used fits the column that they are in, and shows them as people write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.regression import TableError, TableRegression, read_table
from gp_rangeformer.regression.columns import learned
from gp_rangeformer.regression.errors import counted
from gp_rangeformer.regression.rows import usable

ROWS = 12


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": range(ROWS), "y": np.arange(ROWS) ** 2, **columns}).rename_axis("row")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([1.0, "many"] * 6, "column 'y' holds text, 'many': a regression needs numbers: write numbers, and nothing"),
        (["1", "many"] * 6, "row 1: the target 'y' holds 'many': a regression needs numbers: write numbers"),
        ([True, False] * 6, "holds True: a regression needs numbers: write 0 and 1, or name another target"),
        (pd.date_range("2024-01-31", periods=ROWS), "holds 2024-01-31: a regression needs numbers: write numbers,"),
        ([None] * ROWS, "holds no value: a regression needs numbers: write numbers"),
        ([1j] * ROWS, "holds values of kind complex .* can be used; a regression needs numbers: write numbers"),
    ],
)  # fmt: skip
def test_a_target_is_not_to_be_dropped(cells, said):
    with pytest.raises(TableError, match=said) as raised:
        usable(table(y=cells), "y")
    assert "drop" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "cells", "said"),
    [
        ("flag", ["true", "yes"], "holds 'yes', a text, where a boolean belongs: write true or false"),
        ("flag", [True, "yes"], "holds text, 'yes': write true or false, or leave the row out"),
        ("a", ["7", "x"], "holds 'x', a text, where a number belongs: write a number, or leave the row out"),
        ("a", [7.0, "x"], "holds text, 'x': write a number, or leave the row out"),
        ("when", ["2024-01-31", "soon"], "holds 'soon', a text, where a date belongs: write a date like 2024"),
        ("when", [7.0, 8.0], "holds 7.0, a number, where a date belongs: write a date like 2024-01-31, or leave"),
    ],
)  # fmt: skip
def test_cells_of_new_rows_are_asked_for_as_the_model_needs_them(name, cells, said):
    frame = table(flag=[True, False] * 6, when=pd.date_range("2024-01-31", periods=ROWS))
    columns, _ = learned(frame, "y", "drop")
    with pytest.raises(TableError, match=said):
        columns.encoded(frame.head(2).assign(**{name: pd.Series(cells, dtype=object)}))


def test_the_cell_that_is_shown_is_the_one_that_is_wrong(tmp_path: Path):
    (tmp_path / "t.csv").write_text("a,flag,y\n1,true,2\n2,yes,3\n")
    columns, _ = learned(table(flag=[True, False] * 6), "y", "drop")
    with pytest.raises(TableError, match="line 3: column 'flag' holds 'yes', a text, where a boolean belongs"):
        columns.encoded(read_table(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("start", "shown"),
    [("2024-01-31", "2024-01-31"), ("2024-01-31 12:30", "2024-01-31 12:30:00")],
)
def test_dates_are_shown_as_people_write_them(start, shown):
    frame = table(when=pd.date_range(start, periods=ROWS))
    zoned = frame.assign(when=frame["when"].dt.tz_localize("UTC"))
    columns, _ = learned(zoned, "y", "drop")
    with pytest.raises(TableError, match=re.escape(f"row 0: column 'when' holds {shown}, a date without a time zone")):
        columns.encoded(frame)
    with pytest.raises(TableError, match=re.escape(f"holds {shown}, a date, where a number belongs")):
        learned(table(), "y", "drop")[0].encoded(frame.assign(a=frame["when"]))


def test_one_row_is_a_row():
    assert counted(1, "row") == "1 row"
    assert counted(1000, "complete row") == "1,000 complete rows"
    with pytest.raises(TableError, match=r"^1 complete row, 11 with missing values"):
        TableRegression.fit(table(a=[1.0, *[None] * (ROWS - 1)]), target="y")
