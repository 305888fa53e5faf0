"""Numbers and dates are read as the notation says, and what is written otherwise is named with what reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp_rangeformer.regression import TableError, TableWarning, read_table
from gp_rangeformer.regression.errors import argument, naming_options
from gp_rangeformer.regression.notations import Notation, cause


@given(
    st.floats(-1e15, 1e15) | st.integers(-(10**12), 10**12),
    st.sampled_from([(".", None), (",", None), (".", ","), (",", "."), (",", " "), (".", "'")]),
)
def test_a_number_is_read_as_it_was_written(value, signs):
    decimal, thousands = signs
    plain = f"{value:,.6f}" if thousands else f"{value:.6f}"
    written = plain.translate({ord("."): decimal, ord(","): thousands or ","})
    assert Notation(decimal, thousands).number(written) == float(f"{value:.6f}")
    assert Notation(decimal, thousands).number(f" {written}x") is None


@pytest.mark.parametrize(
    ("notation", "cell", "value"),
    [
        (Notation(",", "."), "1.234,5", 1234.5),
        (Notation(",", "."), "1.5", None),  # neither a fraction nor a group of three
        (Notation(",", "."), "1.234.56", None),
        (Notation(","), "1.5", None),
        (Notation(","), "-,5e-3", -0.0005),
        (Notation(","), "5,", 5.0),
        (Notation(","), ",", None),
        (Notation(","), "-inf", -float("inf")),
        (Notation(thousands=" "), "12\u202f345", 12345.0),
        (Notation(thousands=" "), "12 34", None),
        (Notation(",", "."), "0.123", None),
        (Notation(), "1_000", None),
        (Notation(), "\u0661", None),
    ],
)
def test_signs_where_they_do_not_belong_make_a_text(notation, cell, value):
    assert notation.number(cell) == value


@pytest.mark.parametrize(
    ("dayfirst", "cell", "date"),
    [
        (True, "3.4.2024", "2024-04-03"),
        (False, "3/4/2024 12:30", "2024-03-04 12:30"),
        (True, "3.4.2024 9:30", "2024-04-03 09:30"),
        (None, "3/4/2024", None),
        (None, "2024/04/03", "2024-04-03"),
        (True, "2024-04-03T12:30:01Z", "2024-04-03T12:30:01Z"),
        (True, "3.4/2024", None),
        (True, "3.4.24", None),
    ],
)
def test_dates_become_iso(dayfirst, cell, date):
    assert Notation(dayfirst=dayfirst).date(cell) == date


@pytest.mark.parametrize(
    ("cells", "at", "said"),
    [
        (["2", "1,5"], 1, "a comma for the decimal point (read the table with decimal=',')"),
        (["1,234,567"], 0, "a comma between thousands (read the table with thousands=',')"),
        (["1,234"], 0, "decimal=',') or a number with a comma between thousands (read the table with thousands=',')"),
        ([1.0, 20.0, "1,234"], 2, "thousands=','"),
        (["7", "1.234,5"], 1, "decimal=',' thousands='.'"),
        (["1 234"], 0, "spaces between thousands"),
        (["1'234.5"], 0, "apostrophes between thousands"),
        (["5%", "6 %"], 0, "a number with '%' (write the number alone)"),
        (["1", "$1,000.00"], 1, "a number with '$'"),
        (["5 €"], 0, "a number with '€'"),
        (["12 kg"], 0, "a number with 'kg'"),
        (["31.1.2024"], 0, "a date without its year first (read the table with dayfirst=True, day first)"),
        (["1/31/2024"], 0, "(read the table with dayfirst=False, month first)"),
        (["1/2/2024"], 0, "dayfirst=True, day first or dayfirst=False, month first"),
        (["31/31/2024"], 0, "no day of a calendar"),
        (["1.2.24"], 0, "two digits for a year"),
        (["2024-01-31", "31.01.2024"], 1, "year first, beside dates with it first, as '2024-01-31' (read the table"),
        (["2024-01-31", "31.01.2024"], 1, "with dayfirst=True, day first, which reads both)"),
        (["2024-01-31", "2024-02-01", "2024-02-02", "1/31/2024"], 3, "dayfirst=False, month first, which reads both)"),
        (["2024-01-31", "31.01.24"], 1, "two digits for a year, beside dates with it first, as '2024-01-31' (write"),
        (["1.5", None], 0, "stored as text"),
        (["1,5", "2,5", "-"], 0, "decimal=','"),
        (["0,123", "0,5"], 0, "a comma for the decimal point (read the table with decimal=',')"),
    ],
)  # fmt: skip
def test_what_is_written_otherwise_is_named_with_what_reads_it(cells, at, said):
    found = cause(cells)
    assert found is not None
    assert found.at == at
    assert said in found.said


@pytest.mark.parametrize(
    "cells",
    [
        ["Oslo"],
        ["row 1", "row 2"],
        ["A1"],
        ["1.5", "2,5"],
        [],
        [1.0],
        ["1,5", "Oslo", "Rome"],
        ["12:30"],
        ["2024-01-31"],
        ["2024-01-31", "31.01.2024", "Oslo", "Rome"],
    ],
)
def test_of_mere_text_nothing_is_said(cells):
    assert cause(cells) is None


def test_every_remedy_for_a_number_reads_its_cell():
    for cell in ("1,5", "1,234,567", "1.234,5", "1 234", "1'234.5", "1 234,5"):
        found: Any = cause([cell])
        wanted = {name: sign for name, _, sign in re.findall(r"(decimal|thousands)=(['\"])(.)\2", found.said)}
        assert wanted
        assert Notation(**wanted).number(cell) is not None


@pytest.mark.parametrize(
    "wanted", [{"decimal": ",,"}, {"decimal": "1"}, {"thousands": ""}, {"thousands": "."}, {"decimal": "-"}]
)
def test_signs_that_cannot_be_told_apart_are_refused(wanted):
    with pytest.raises(TableError):
        Notation(**wanted)


def test_settings_are_named_as_whoever_asked_can_set_them():
    settings: list[tuple[str, Any, str, str]] = [
        ("encode", "one-hot", "encode='one-hot'", "--encode one-hot"),
        ("decimal", ",", "decimal=','", "--decimal ,"),
        ("thousands", " ", "thousands=' '", "--thousands ' '"),
        ("dayfirst", False, "dayfirst=False", "--no-dayfirst"),
        ("drop", ["a b", "c,d"], "drop=['a b', 'c,d']", "--drop 'a b,\"c,d\"'"),
    ]
    for name, value, python, option in settings:
        assert argument(name, value) == python
        with naming_options():
            assert argument(name, value) == option
    assert argument("encode", "drop") == "encode='drop'"


def column(tmp_path: Path, cells: list[str], **options: Any) -> list[float]:
    (tmp_path / "t.csv").write_text("\n".join(["n;m", *(f"{cell};1" for cell in cells)]))
    return read_table(tmp_path / "t.csv", **options)["n"].tolist()


@pytest.mark.parametrize("cells", [["6.370", "997", "12.000"], ["0", "-123.456", "", "1.000", "7"]])
def test_points_that_may_stand_between_thousands_are_pointed_out(tmp_path, cells):
    said = r"t.csv, line .: column 'n' holds \S+ beside whole numbers, .* with decimal=',' thousands='.', or write no"
    with pytest.warns(TableWarning, match=said):
        read = column(tmp_path, cells)
    numbers = [float(cell or "nan") for cell in cells]
    np.testing.assert_array_equal(read, numbers)
    thousands = [number if abs(number) > 500 or number in (0, 7) else 1000 * number for number in numbers]
    np.testing.assert_allclose(column(tmp_path, cells, decimal=",", thousands="."), thousands)


@pytest.mark.parametrize(
    "cells",
    [
        ["6.370", "7.125", "12.000"],  # to three decimals
        ["6.370", "997", "12.00"],
        ["6.370", "997"],
        ["0.370", "997", "12.000"],
        ["6.370", "1997", "12.000"],
        ["6.370", "997.0", "12.000"],
        ["6.370", "0", "12.000"],
        ["1234.125", "3", "2.375"],
        ["1e3", "3", "2.375", "2.125"],
    ],
)
def test_other_points_are_decimal_points(tmp_path, cells):
    """A warning would be an error here."""
    assert column(tmp_path, cells) == [float(cell) for cell in cells]
