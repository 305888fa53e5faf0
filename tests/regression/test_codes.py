"""Columns of numbers and texts: codes where texts become inputs, else numbers with a cell that is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.regression import TableError, TableRegression, TableWarning
from gp_rangeformer.regression.columns import learned
from gp_rangeformer.regression.rows import usable

ROWS = 24


def table(cells: list[Any]) -> pd.DataFrame:
    code = pd.Series(cells * (ROWS // len(cells)), dtype=object)
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.normal(size=ROWS), "code": code, "y": rng.normal(size=ROWS)}).rename_axis("row")


def test_codes_are_texts_where_those_become_inputs():
    frame = table([0, 1, "A", None])
    found = usable(frame, "y", encode="one-hot", missing="mean")
    assert found.notes == ("row 2: column 'code' holds 'A' and is taken for text, its numbers for codes",)
    columns, _ = learned(found.frame, "y", "mean")
    assert columns.names == ("a", "code=0", "code=1", "code=A")
    assert frame["code"].tolist()[:2] == [0, 1], "the table itself was changed"
    assert usable(found.frame, "y", encode="one-hot", missing="mean").notes == ()
    # New rows may have no text.
    assert columns.encoded(frame.head(2).astype({"code": int}))[:, 1:].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_model_of_codes_says_so():
    with pytest.warns(TableWarning, match="row 2: column 'code' holds 'A' and is taken for text"):
        model = TableRegression.fit(table([0, 1, "A"]), target="y", kernel="rbf", encode="one-hot")
    assert len(model.notes) == 1


@pytest.mark.parametrize("encode", ["refuse", "drop"])
def test_elsewhere_the_text_is_refused_and_the_way_out_is_named(encode):
    with pytest.raises(TableError, match=r"row 2: .* holds text, 'A': drop .*; if they are codes, encode='one-hot'$"):
        usable(table([0, 1, "A"]), "y", encode=encode)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([*range(23), "A"], "row 23: column 'code' holds text, 'A': drop the column .* for missing ones$"),
        ([*range(12), *range(11), "A"], "row 23: column 'code' holds text, 'A': drop the .* for missing ones$"),
        ([0.5, 1.0, "A"], "holds text, 'A': drop the column .* for missing ones$"),
        ([1, "A"], "holds text, 'A': drop the column .* for missing ones$"),
        ([1, True, "A"], "holds text, 'A': drop the column .* for missing ones$"),
        ([pd.Timestamp(0), "A"], "holds text, 'A'.* for missing ones$"),
    ],
)
def test_more_of_them_than_become_inputs_and_other_mixtures_are_no_codes(cells, said):
    with pytest.raises(TableError, match=said):
        usable(table(cells), "y", encode="one-hot")


def test_a_target_is_no_code():
    frame = table([0, 1, "A"]).rename(columns={"code": "y", "y": "code"})
    with pytest.raises(TableError, match="row 2: column 'y' holds text, 'A': a regression needs numbers"):
        usable(frame, "y", encode="one-hot")
