"""Columns become inputs as the training rows have taught, and new rows that do not fit are refused by name."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gp_rangeformer.regression import Columns, TableError
from gp_rangeformer.regression.columns import learned
from gp_rangeformer.regression.rows import usable

ROWS = 12
ONE_OF_EACH = pd.DataFrame(
    {
        "x": [1.0, 2.0] * 6,
        "flag": [True, False, False] * 4,
        "when": pd.date_range("2024-01-31", periods=ROWS),
        "city": ["Oslo", "Rome", "Bonn"] * 4,
        "y": np.arange(ROWS) * 1.0,
    },
    index=pd.Index(range(2, ROWS + 2), name="line"),
)


def learn(frame: pd.DataFrame, **options: Any) -> Columns:
    options = {"encode": "one-hot", **options}
    found = usable(frame, "y", **options)
    return learned(found.frame, "y", options.get("missing", "drop"))[0]


def changed(at: int, column: str, value: object) -> pd.DataFrame:
    frame = ONE_OF_EACH.astype({column: object})
    frame.loc[at, column] = value
    return frame


cells = {
    "x": st.floats(-1e12, 1e12),
    "flag": st.booleans(),
    "when": st.datetimes(datetime.datetime(1800, 1, 1), datetime.datetime(2200, 1, 1)),
    "city": st.sampled_from(["Oslo", "Rome", "", "x=1", "Köln"]),
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({name: st.lists(cell, min_size=ROWS, max_size=ROWS) for name, cell in cells.items()}))
def test_what_is_encoded_is_decoded(drawn):
    # One column that is surely not constant.
    frame = pd.DataFrame({**drawn, "i": range(ROWS), "y": np.arange(ROWS) * 1.0})
    columns = learn(frame)
    columns = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    x = columns.encoded(frame)
    assert x.shape == (ROWS, len(columns.names))
    decoded = columns.decoded(x)
    for column in columns.inputs:
        if column.kind == "date":
            # Days as float64: 0.7 microseconds at 2200.
            apart: Any = decoded["when"] - frame["when"]
            assert apart.abs().max() <= pd.Timedelta(2, "us")
        else:
            assert decoded[column.name].tolist() == frame[column.name].tolist()


def test_inputs_are_numbers_days_zeros_and_ones():
    columns = learn(ONE_OF_EACH)
    assert columns.names == ("x", "flag", "when", "city=Bonn", "city=Oslo", "city=Rome")
    assert columns.slices == {"x": slice(0, 1), "flag": slice(1, 2), "when": slice(2, 3), "city": slice(3, 6)}
    days = (datetime.date(2024, 1, 31) - datetime.date(1970, 1, 1)).days
    assert columns.encoded(ONE_OF_EACH)[0].tolist() == [1, 1, days, 0, 1, 0]
    assert columns.encoded(ONE_OF_EACH.iloc[:0]).shape == (0, 6)


@pytest.mark.parametrize(
    "cities",
    [pd.Categorical(["a", "b"] * 6), pd.array(["a", "b"] * 6, dtype="string"), np.array(["a", "b"] * 6, dtype=object)],
    ids=["categorical", "string", "object"],
)
def test_text_and_numbers_of_every_dtype(cities):
    frame = pd.DataFrame({
        "city": cities, "i": pd.array(range(ROWS), dtype="Int64"), "b": pd.array([True, False] * 6, dtype="boolean"),
        "f": pd.array(np.arange(ROWS) / 2, dtype="Float64"), "y": np.arange(ROWS, dtype=np.float32),
        "d": [datetime.date(2024, 1, 1 + day) for day in range(ROWS)],
    })  # fmt: skip
    columns = learn(frame)
    assert [column.kind for column in columns.inputs] == ["text", "number", "boolean", "number", "date"]
    assert columns.encoded(frame)[3, :4].tolist() == [0, 1, 3, 0]


def test_constant_and_empty_columns_are_left_out_and_named():
    frame = ONE_OF_EACH.assign(same=0.1, one="Oslo", empty=None)
    found = usable(frame, "y", encode="one-hot")
    columns, notes = learned(found.frame, "y", "drop")
    assert columns.names == learn(ONE_OF_EACH).names
    assert (*found.notes, *notes) == ("left out, without a single value: 'empty'", "left out, constant: 'same', 'one'")


@pytest.mark.parametrize("column", ["x", "flag", "when", "city"])
def test_missing_cells_are_dropped_filled_or_refused(column):
    frame = changed(5, column, None)
    found = usable(frame, "y", encode="one-hot")
    assert 5 not in found.frame.index
    assert found.notes == (f"dropped 1 of 12 rows with missing values; most are missing in column {column!r}",)
    assert learn(frame).encoded(frame).isnan().any(dim=1).tolist() == [label == 5 for label in frame.index]
    filled = learn(frame, missing="mean")
    x = filled.encoded(frame)
    assert bool(x.isfinite().all())
    others = [label != 5 for label in frame.index]
    typical = {
        "x": x[others, 0].mean(),
        "flag": torch.tensor(0.0),
        "when": x[others, 2].mean(),
        "city": x[others, 3:].mean(dim=0).round(),  # Bonn and Oslo four times, Rome three
    }[column]
    expected = typical if column != "city" else torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(x[3, filled.slices[column]].squeeze(), expected.double(), rtol=1e-12, atol=0)
    with pytest.raises(TableError, match=f"line 5: column '{column}' is missing"):
        usable(frame, "y", encode="one-hot", missing="refuse")
    with pytest.raises(TableError, match=f"line 5: column '{column}' is missing"):
        learn(ONE_OF_EACH, missing="refuse").encoded(frame)


def test_rows_without_a_target_are_never_filled():
    frame = changed(5, "y", None).astype({"y": float})
    assert 5 not in usable(frame, "y", encode="one-hot", missing="mean").frame.index


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("x", np.inf, "line 5: column 'x' is infinite"),
        ("flag", 2, "values of kind mixed"),
        ("when", "soon", "line 5: column 'when' holds text, 'soon'"),
        ("city", 3, "column 'city' holds text, 'Oslo'"),
        ("y", -np.inf, "line 5: column 'y' is infinite"),
        ("x", 1j, "values of kind mixed"),
    ],
)
def test_cells_of_another_kind_are_refused_with_their_place(column, value, said):
    with pytest.raises(TableError, match=said):
        learn(changed(5, column, value))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("x", np.inf, "line 5: column 'x' is infinite, inf: correct or remove the row"),
        ("flag", 0.5, "line 5: column 'flag' holds 0.5, where true or false belongs"),
        ("city", "Romme", "line 5: column 'city' is 'Romme', which no training row has, did you mean 'Rome'"),
    ],
)
def test_new_rows_that_do_not_fit_are_refused_with_their_place(column, value, said):
    columns = learn(ONE_OF_EACH)
    row = ONE_OF_EACH.loc[[5]].astype({column: object})
    row[column] = [value]
    with pytest.raises(TableError, match=said):
        columns.encoded(row)


def zoned(frame: pd.DataFrame, zone: str | None) -> pd.DataFrame:
    return frame.assign(when=frame["when"].dt.tz_localize(zone))


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", None])
@pytest.mark.parametrize("of_objects", [False, True])
def test_dates_keep_having_a_time_zone_or_none(zone, of_objects):
    frame = zoned(ONE_OF_EACH, zone)
    frame = frame.astype({"when": object}) if of_objects else frame
    columns = learn(frame)
    columns = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    decoded = columns.decoded(columns.encoded(frame))["when"]
    assert (decoded.dt.tz is None) == (zone is None)
    assert decoded.tolist() == frame["when"].tolist()
    other, said = ("UTC", "with a time zone, and .* without") if zone is None else (None, "without .* with one")
    with pytest.raises(TableError, match=f"line 2: column 'when' holds 20.*, a date {said}"):
        columns.encoded(zoned(ONE_OF_EACH, other))
    # Nothing is known of dates that are missing.
    assert bool(columns.encoded(frame.assign(when=pd.NaT)).isnan().any(dim=1).all())


def test_dates_with_and_without_a_zone_do_not_mix():
    mixed = zoned(ONE_OF_EACH, "UTC").astype({"when": object})
    mixed.loc[5, "when"] = pd.Timestamp("2024-02-03")
    with pytest.raises(TableError, match=r"line 5: column 'when' holds .*, without a time zone, and line 2"):
        learn(mixed)
    with pytest.raises(TableError, match="line 5: column 'when' holds"):
        learn(zoned(ONE_OF_EACH, "UTC")).encoded(mixed)


def in_german(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(x=[f"{value:.2f}".replace(".", ",") for value in frame["x"]])


def test_numbers_in_another_notation_are_named_wherever_a_number_belongs():
    remedy = r"line 2: .*'1,00'.*: a number with a comma for the decimal point \(read the table with decimal=','\)"
    frame = in_german(ONE_OF_EACH.drop(columns="city"))
    for attempt in (
        lambda: usable(frame, "y"),
        lambda: usable(frame.rename(columns={"x": "y", "y": "x"}), "y"),
        lambda: learn(ONE_OF_EACH).encoded(frame.assign(city="Oslo")),
    ):
        with pytest.raises(TableError, match=remedy):
            attempt()
    for encode in ("one-hot", "drop"):
        (note, *_) = usable(frame, "y", encode=encode).notes
        assert re.match("line 2: column 'x' is taken for text, '1,00': a number with a comma", note)
    many = pd.DataFrame({"x": np.arange(30) + 0.5, "y": range(30)})
    with pytest.raises(TableError, match=r"30 different texts, such as '0,50' .*decimal=','"):
        learn(in_german(many))


def test_a_name_that_two_columns_have_is_refused_in_new_rows_too():
    columns = learn(ONE_OF_EACH)
    for name in ("x", "other"):
        twice = pd.concat([ONE_OF_EACH.assign(other=1), ONE_OF_EACH.assign(other=2)[[name]]], axis=1)
        with pytest.raises(TableError, match=f"column name '{name}' occurs more than once"):
            columns.encoded(twice)


def test_a_column_of_another_kind_or_none_is_refused():
    columns = learn(ONE_OF_EACH)
    with pytest.raises(TableError, match="line 2: column 'x' holds 'Oslo', a text, where a number belongs"):
        columns.encoded(ONE_OF_EACH.assign(x=ONE_OF_EACH["city"]))
    with pytest.raises(TableError, match="no column 'city', did you mean 'City'"):
        columns.encoded(ONE_OF_EACH.rename(columns={"city": "City"}))
    # 0 and 1 are what false and true may be in a small table.
    zeros = ONE_OF_EACH.assign(flag=ONE_OF_EACH["flag"].astype(int))
    assert torch.equal(columns.encoded(zeros), columns.encoded(ONE_OF_EACH))


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda f: f, {"encode": "refuse"}, "line 2: column 'city' holds text, 'Oslo': drop the column or encode it"),
        (lambda f: f.assign(id=[f"row {i}" for i in range(ROWS)]), {}, None),
        (lambda f: pd.concat([f] * 2, ignore_index=True).assign(id=[f"r{i}" for i in range(24)]), {}, "24 different"),
        (lambda f: f.rename(columns={"x": 0}), {}, "column 0 has no text for a name"),
        (lambda f: pd.concat([f, f["x"]], axis=1), {}, "'x' occurs more than once"),
        (lambda f: pd.concat([f, f]), {}, "two rows have the same label"),
        (
            lambda f: f.rename(columns={"y": "Y"}),
            {},
            "no column 'y', did you mean 'Y'.; its columns: x, flag, when, city, Y",
        ),
        (lambda f: f, {"drop": ("z",)}, "no column 'z'"),
        (lambda f: f, {"drop": ("y",)}, "'y' is among the columns to drop"),
        (lambda f: f, {"drop": ("x", "flag", "when", "city")}, "only the target column 'y'"),
        (lambda f: f.assign(y=f["city"]), {}, "the target 'y' holds 'Oslo'"),
        (lambda f: f.assign(y=None), {}, "the target 'y' holds no value"),
        (lambda f: f.iloc[:9], {}, "9 complete rows"),
        (lambda f: f.iloc[:0], {}, "there are no rows; at least 10"),
        (
            lambda f: f.assign(**{"Unnamed: 3": range(ROWS)}),
            {},
            r"column 4 has no name, as a row index has none: name it, or leave it out \(drop=\['Unnamed: 3'\]\)",
        ),
        (lambda f: f[["x"]], {}, r"there is only one column, 'x': is the separator another \(sep=';'\)"),
        (lambda f: f.rename(columns={"y": "Y"})[["x", "Y"]], {}, "no column 'y', did you mean 'Y'"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(change, options, said):
    frame = change(ONE_OF_EACH)
    if said is None:
        assert len(learn(frame, **options).names) == 6 + ROWS
        return
    with pytest.raises(TableError, match=said):
        learn(frame, **options)


@pytest.mark.parametrize("other", [ONE_OF_EACH.to_numpy(), ONE_OF_EACH.to_dict(), ONE_OF_EACH["x"]], ids=type)
def test_what_is_no_table_of_pandas_is_refused(other: Any):
    with pytest.raises(TableError, match=f"not a {type(other).__name__}: convert it"):
        usable(other, "y")
    with pytest.raises(TableError, match=f"not a {type(other).__name__}: convert it"):
        learn(ONE_OF_EACH).encoded(other)


def test_columns_without_name_and_cells_are_left_out_and_others_when_asked():
    frame = ONE_OF_EACH.assign(**{"Unnamed: 5": None, "Unnamed: 6": range(ROWS)})
    found = usable(frame, "y", encode="one-hot", drop=("Unnamed: 6",))
    assert list(found.frame.columns) == list(ONE_OF_EACH.columns)
    assert found.notes == ("left out, without a single value: 'Unnamed: 5'",)


def test_text_columns_are_dropped_when_asked():
    found = usable(ONE_OF_EACH, "y", encode="drop")
    assert list(found.frame.columns) == ["x", "flag", "when", "y"]
    assert found.notes == ("left out, text: 'city'",)
    with pytest.raises(ValueError, match="encode must be one of refuse, one-hot, drop, got 'onehot'"):
        usable(ONE_OF_EACH, "y", encode="onehot")  # type: ignore[arg-type]
