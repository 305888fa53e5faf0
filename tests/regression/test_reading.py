"""Files become tables exactly, or are refused with line, column and remedy."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from gp_rangeformer.regression import TableError, TableWarning, read_table

ROWS = ("a,city,flag,when,y", "1,Oslo,true,2024-01-31,2.5", "2,Rome,FALSE,2024-02-01 12:00,-4e0", "?,NA,,,nan")


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("named", [True, False])
def test_cells_are_numbers_booleans_dates_text_or_missing(tmp_path, mark, named):
    path = write(tmp_path / "t.csv", "\n".join(ROWS).replace(",", mark))
    table = read_table(path, mark if named else None)
    assert (table.index.name, list(table.index)) == ("line", [2, 3, 4])
    assert table["a"].tolist()[:2] == [1.0, 2.0]
    assert table["city"].tolist()[:2] == ["Oslo", "Rome"]
    assert table["flag"].tolist()[:2] == [True, False]
    assert table["when"].tolist()[:2] == [pd.Timestamp("2024-01-31"), pd.Timestamp("2024-02-01 12:00")]
    assert table["y"].tolist()[:2] == [2.5, -4.0]
    assert table.iloc[2].isna().all()


def test_a_zone_moves_dates_to_utc(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "when,y\n2024-01-31T12:00:00+02:00,1\n2024-01-31T12:00:00Z,2\n"))
    assert [str(when) for when in table["when"]] == ["2024-01-31 10:00:00+00:00", "2024-01-31 12:00:00+00:00"]


@pytest.mark.parametrize(
    ("rows", "naive", "zoned"),
    [
        ("2024-01-31T12:00Z\n2024-02-01T12:00", "line 3: column 'when' holds '2024-02-01T12:00'", "line 2"),
        ("?\n2024-01-31\n2024-01-31 12:00+01:00", "line 3: column 'when' holds '2024-01-31'", "line 4"),
    ],
)
def test_dates_with_and_without_a_zone_do_not_mix(tmp_path, rows, naive, zoned):
    with pytest.raises(TableError, match=re.escape(f"t.csv, {naive}, without a time zone, and {zoned} ")):
        read_table(write(tmp_path / "t.csv", f"when\n{rows}\n"))


def test_other_notations_are_read_when_named(tmp_path):
    path = write(tmp_path / "t.csv", "a;b;when\n1,5;1.234;31.1.2024\n-2e1;5;1.2.2024 12:30\n")
    plain = read_table(path)
    assert plain["a"].tolist() == ["1,5", "-2e1"]
    assert plain["b"].tolist() == [1.234, 5.0]
    assert plain["when"].tolist() == ["31.1.2024", "1.2.2024 12:30"]
    found = read_table(path, decimal=",", thousands=".", dayfirst=True)
    assert found["a"].tolist() == [1.5, -20.0]
    assert found["b"].tolist() == [1234.0, 5.0]
    assert found["when"].tolist() == [pd.Timestamp("2024-01-31"), pd.Timestamp("2024-02-01 12:30")]
    with pytest.raises(TableError, match=r"t\.csv, line 2: column 'when': there is no date '31\.1\.2024'"):
        read_table(path, dayfirst=False)


def test_numbers_that_excel_holds_as_text_are_numbers(tmp_path):
    cells = {"a": ["1", " 2,5 "], "b": [1, "3"], "c": ["007", "x"], "flag": ["true", True], "y": ["?", 2.5]}
    pd.DataFrame(cells).to_excel(tmp_path / "t.xlsx", index=False)
    found = read_table(tmp_path / "t.xlsx", decimal=",", text=["b"])
    assert found["a"].tolist() == [1.0, 2.5]
    assert found["b"].tolist() == [1, "3"]
    assert found["c"].tolist() == ["007", "x"]
    assert found["flag"].tolist() == [True, True]
    assert found["y"].isna().tolist() == [True, False]


def test_a_sheet_is_chosen_by_name_and_others_are_not_passed_over_in_silence(tmp_path):
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as book:
        for at, name in enumerate(("notes", "data")):
            pd.DataFrame({"a": [at]}).to_excel(book, sheet_name=name, index=False)
    with pytest.warns(TableWarning, match=r"t.xlsx: read the sheet 'notes'; others: data \(sheet='data'\)"):
        assert read_table(path)["a"].tolist() == [0]
    assert read_table(path, sheet="data")["a"].tolist() == [1]
    with pytest.raises(TableError, match=r"t\.xlsx has no sheet 'Data', did you mean 'data'\?; sheets: notes, data"):
        read_table(path, sheet="Data")
    with pytest.raises(TableError, match="is no Excel file"):
        read_table(write(tmp_path / "t.csv", "a\n1\n"), sheet="data")


def test_columns_of_codes_stay_text_when_asked(tmp_path):
    path = write(tmp_path / "t.csv", "code,y\n007,1\n010,2\n")
    assert read_table(path)["code"].tolist() == [7.0, 10.0]
    assert read_table(path, text=["code"])["code"].tolist() == ["007", "010"]


def test_gzip_byte_order_mark_and_quoted_separators(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress('\ufeffa,"b, c"\r\n1,"x, y"\r\n'.encode()))
    table = read_table(path)
    assert (list(table.columns), table["b, c"].tolist()) == (["a", "b, c"], ["x, y"])


def test_a_named_index_of_parquet_is_a_column(tmp_path):
    frame = pd.DataFrame({"day": [3, 4], "y": [1.0, 2.0]})
    frame.set_index("day").to_parquet(tmp_path / "named.parquet")
    frame[["y"]].to_parquet(tmp_path / "plain.parquet")
    assert list(read_table(tmp_path / "named.parquet").columns) == ["day", "y"]
    assert list(read_table(tmp_path / "plain.parquet").columns) == ["y"]


def test_parquet_and_excel_hold_the_same_table(tmp_path):
    table = pd.DataFrame({
        "a": [1.5, None, 3.0], "city": ["Oslo", None, "Rome"], "flag": [True, False, True],
        "when": pd.to_datetime(["2024-01-31", None, "2024-02-02"]),
    })  # fmt: skip
    table.to_parquet(tmp_path / "t.parquet")
    table.to_excel(tmp_path / "t.xlsx", index=False)
    for name, first in (("t.parquet", 1), ("t.xlsx", 2)):  # a sheet's first row is its header
        found = read_table(tmp_path / name)
        assert (found.index.name, list(found.index)) == ("row", [first, first + 1, first + 2])
        for column in table:
            assert found[column].isna().tolist() == table[column].isna().tolist()
            assert found[column].dropna().tolist() == table[column].dropna().tolist()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.csv is empty"),
        ("1,2\n3,4\n", "its first line holds only numbers"),
        ("a,b,a\n1,2,3\n", "'a' occurs more than once"),
        ("a,y\n1,2\n3\n", "t.csv, line 3: 1 cells under 2 columns"),
        ("a,y\n1,2\n\n3,4,5\n", "t.csv, line 4: 3 cells under 2 columns"),
        ('a,y\n1,"2\n', "not well-formed CSV"),
        ("a,y\n2024-01-31,1\n2024-02-30,2\n", "t.csv, line 3: column 'a': there is no date '2024-02-30'"),
    ],
)
def test_faults_of_text_files_are_named_with_their_place(tmp_path, text, said):
    with pytest.raises(TableError, match=said):
        read_table(write(tmp_path / "t.csv", text))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for name, content, said in (
        ("absent.csv", None, "no file"),
        ("absent.xlsx", None, "no file"),
        ("t.csv", "a,y\n1,2\n".encode("utf-16"), r"is not UTF-8 text .* \(encoding='cp1252', encoding='utf-16'\)"),
        ("t.csv", "a,y\n1,2\n".encode("utf-16-le"), r"t.csv, line 1 holds a zero byte: .* \(encoding='utf-16'\)"),
        ("t.csv.gz", gzip.compress(b"a,y\n" * 5000)[:-30], "cannot read"),
        ("t.xlsx", b"a,y\n1,2\n", "cannot read .* as an Excel file"),
        ("t.parquet", b"a,y\n1,2\n", "cannot read .* as a Parquet file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(TableError, match=said):
            read_table(tmp_path / name)
    with pytest.raises(TableError, match="is not one character"):
        read_table(tmp_path / "t.csv", ";;")
    wanted: tuple[dict[str, Any], ...] = ({"sep": ";"}, {"decimal": ","}, {"dayfirst": True}, {"encoding": "cp1252"})
    for options in wanted:
        with pytest.raises(TableError, match="is no text file"):
            read_table(tmp_path / "t.parquet", **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_encodings_are_read_when_named(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes("größe,y\nkühl,2\n".encode(encoding))
    table = read_table(path, encoding=encoding)
    assert (list(table.columns), table["größe"].tolist()) == (["größe", "y"], ["kühl"])
    if encoding.startswith("utf-8"):
        pd.testing.assert_frame_equal(read_table(path), table)
    with pytest.raises(TableError, match="encoding='klingon': there is no such encoding"):
        read_table(path, encoding="klingon")


def test_columns_without_a_name_are_called_as_pandas_does(tmp_path):
    path = write(tmp_path / "t.csv", ",a,\n0,1,\n1,2,\n")
    found = read_table(path)
    assert list(found.columns) == list(pd.read_csv(path).columns) == ["Unnamed: 0", "a", "Unnamed: 2"]
    assert bool(found["Unnamed: 2"].isna().all())


def test_a_table_of_excel_may_begin_anywhere(tmp_path):
    frame = pd.DataFrame({"a": [1, None], 2024: [1.5, 2.5]})
    frame.to_excel(tmp_path / "t.xlsx", index=False, startrow=2, startcol=1)
    found = read_table(tmp_path / "t.xlsx")
    assert list(found.columns) == ["a", "2024"]
    assert list(found.index) == [4, 5]
    assert found["2024"].tolist() == [1.5, 2.5]


def test_names_of_parquet_that_occur_twice_are_refused(tmp_path):
    cells = pyarrow.array([1.0, 2.0])
    pyarrow.parquet.write_table(pyarrow.table([cells, cells], names=["a", "a"]), tmp_path / "t.parquet")
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=pd.Index([5, 6], name="a"))
    frame.to_parquet(tmp_path / "index.parquet")
    for name in ("t.parquet", "index.parquet"):
        with pytest.raises(TableError, match=f"{name}: column name 'a' occurs more than once"):
            read_table(tmp_path / name)


def test_an_excel_header_is_checked_as_others_are(tmp_path):
    pd.DataFrame([["a", "a"], [1, 2]]).to_excel(tmp_path / "t.xlsx", index=False, header=False)
    with pytest.raises(TableError, match="'a' occurs more than once"):
        read_table(tmp_path / "t.xlsx")


def test_without_pandas_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    path = write(tmp_path / "t.csv", "\n".join(ROWS))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'gp-rangeformer\[tables\]'"):
        read_table(path)
