"""Tables as people have them, on the command line: what reads them, and errors that name options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.regression import TableError, TableRegression, fitting, read_table
from tests.lab.commands import invoke, said

ROWS = 40


@pytest.fixture
def frame() -> Any:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": 1000 * rng.normal(size=ROWS), "when": pd.date_range("2024-01-25", periods=ROWS)})
    return frame.assign(y=np.sin(frame["a"] / 500) + 0.1 * rng.normal(size=ROWS))


def written_in_german(frame: Any, path: Path) -> Path:
    """Decimal commas, points between thousands, days first."""
    numbers = {
        name: [f"{value:,.3f}".translate({ord(","): ".", ord("."): ","}) for value in frame[name]]
        for name in ("a", "y")
    }
    frame.assign(**numbers, when=frame["when"].dt.strftime("%d.%m.%Y")).to_csv(path, sep=";", index=False)
    return path


NOTATION = ("--decimal", ",", "--thousands", ".", "--dayfirst")


def test_a_table_in_another_notation_is_fitted_and_predicted(frame, tmp_path):
    path = written_in_german(frame, tmp_path / "t.csv")
    refused = invoke("fit", path, "--target", "y")
    assert refused.exit_code == 2
    assert "t.csv, line 2: the target 'y' holds" in said(refused)
    assert "(read the table with --decimal ,)" in said(refused)
    fitted = invoke("fit", path, "--target", "y", "--kernel", "rbf", "--out", tmp_path / "m", *NOTATION)
    assert fitted.exit_code == 0, fitted.output
    model = TableRegression.load(tmp_path / "m")
    assert [column.kind for column in model.columns.inputs] == ["number", "date"]
    refused = invoke("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv")
    assert refused.exit_code == 2
    assert "a number with a comma for the decimal point" in said(refused)
    result = invoke("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv", *NOTATION)
    assert result.exit_code == 0, result.output
    predicted = read_table(tmp_path / "p.csv")
    np.testing.assert_allclose(predicted["y"], frame["y"], atol=5e-4)
    rounded = frame.assign(a=frame["a"].round(3))
    np.testing.assert_allclose(predicted["mean"], model.predict(rounded)["mean"], rtol=1e-6)


def test_errors_name_options_on_the_command_line_and_arguments_in_python(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "fit_mll", pytest.fail)
    frame = frame.assign(city=["Oslo", "Rome"] * (ROWS // 2))
    frame.to_csv(tmp_path / "t.csv", index=False)
    for command in ("fit", "compare"):
        result = invoke(command, tmp_path / "t.csv", "--target", "y")
        assert result.exit_code == 2
        assert "drop the column or encode it: --drop city, --encode one-hot, or --encode drop" in said(result)
    with pytest.raises(TableError, match=r"encode it: drop=\['city'\], encode='one-hot', or encode='drop'"):
        TableRegression.fit(frame, target="y")


def test_columns_with_commas_in_their_names_can_be_left_out(frame, tmp_path):
    frame.assign(**{"b, c": "x", "d": "y"}).to_csv(tmp_path / "t.csv", index=False)
    result = invoke("fit", tmp_path / "t.csv", "--target", "y", "--drop", '"b, c", d, when', "--kernel", "rbf")
    assert result.exit_code == 0, result.output


def test_one_of_two_columns_with_a_name_is_not_taken_for_the_other(frame, tmp_path):
    frame.drop(columns="when").to_csv(tmp_path / "t.csv", index=False)
    assert invoke("fit", tmp_path / "t.csv", "--target", "y", "--kernel", "rbf", "--out", tmp_path / "m").exit_code == 0
    for header in ("a,a", "a,other,other"):
        (tmp_path / "new.csv").write_text(f"{header}\n{','.join(['1'] * (header.count(',') + 1))}\n")
        result = invoke("predict", tmp_path / "m", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
        assert result.exit_code == 2
        assert f"column name {header.split(',')[-1]!r} occurs more than once" in said(result)
        assert "Traceback" not in result.output


def test_a_table_is_not_written_over(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    before = (tmp_path / "t.csv").read_bytes()
    assert invoke("fit", tmp_path / "t.csv", "--target", "y", "--kernel", "rbf", "--out", tmp_path / "m").exit_code == 0
    for command in (
        ("predict", tmp_path / "m", tmp_path / "t.csv", "--out", tmp_path / "t.csv"),
        ("fit", tmp_path / "t.csv", "--target", "y", "--predictions", tmp_path / "m" / ".." / "t.csv"),
        ("fit", tmp_path / "t.csv", "--target", "y", "--json", tmp_path / "t.csv"),
    ):
        result = invoke(*command)
        assert result.exit_code == 2
        assert "is the table itself" in said(result)
        assert (tmp_path / "t.csv").read_bytes() == before
    result = invoke("predict", tmp_path / "m" / "model.json", tmp_path / "t.csv", "--out", tmp_path / "p.csv")
    assert "model.json is a file: name the folder that it is in" in said(result)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (lambda y: pd.date_range("2024-01-31", periods=len(y)), "line 2: column 'y' holds 2024-01-31, a date, where"),
        (lambda y: y.map("{:.2f} EUR".format), "EUR', a text, where a number belongs: a number with 'EUR' (write"),
        (lambda y: y.map("{:.3f}".format).where(y.index != 3, "51,234"), "line 5: column 'y' holds text, '51,234'"),
        (lambda y: y.where(y.index != 7, np.inf), "line 9: column 'y' is infinite, inf"),
    ],
)
def test_a_target_that_is_no_number_has_no_error_and_the_cell_is_named(frame, tmp_path, cells, why):
    frame = frame.drop(columns="when")
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert invoke("fit", tmp_path / "t.csv", "--target", "y", "--kernel", "rbf", "--out", tmp_path / "m").exit_code == 0
    frame.assign(y=cells(frame["y"])).to_csv(tmp_path / "new.csv", index=False)
    result = invoke("predict", tmp_path / "m", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    assert "Warning: there is no RMSE: new.csv, line" in said(result)
    assert why in said(result)
    assert "RMSE" not in result.stdout
    assert f"{ROWS} rows predicted" in result.stdout


def test_what_pandas_writes_can_be_predicted_and_its_row_index_is_no_input(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv")
    refused = invoke("fit", tmp_path / "t.csv", "--target", "y")
    assert refused.exit_code == 2
    assert "column 1 has no name, as a row index has none: name it, or leave it out (--drop 'Unnamed: 0')" in said(
        refused
    )
    fitted = invoke(
        "fit", tmp_path / "t.csv", "--target", "y", "--kernel", "rbf", "--drop", "Unnamed: 0", "--out", tmp_path / "m"
    )
    assert fitted.exit_code == 0, fitted.output
    assert invoke("predict", tmp_path / "m", tmp_path / "t.csv", "--out", tmp_path / "p.csv").exit_code == 0
    assert len(read_table(tmp_path / "p.csv")) == ROWS


def test_a_reader_that_goes_away_does_not_cost_the_training(frame, tmp_path, monkeypatch):
    """As in ``gp-rangeformer fit ... | head``."""

    def gone(fitted: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("gp_rangeformer.lab.commands.fit.print_fit", gone)
    frame.to_csv(tmp_path / "t.csv", index=False)
    invoke("fit", tmp_path / "t.csv", "--target", "y", "--kernel", "rbf", "--out", tmp_path / "m")
    assert TableRegression.load(tmp_path / "m").target == "y"
