"""``fit`` keeps what it finds of a table of any kind, and ``predict`` asks it."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.fit import Record
from gp_rangeformer.lab.datasets import TableOptions, load_split
from gp_rangeformer.regression import TableRegression, fitting
from gp_rangeformer.regression.files import UNFINISHED
from tests.lab.commands import invoke, said

ROWS = 120


@pytest.fixture
def frame() -> Any:
    """y depends on a, on the city and on the flag; one cell is missing, one column constant."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "a": rng.normal(size=ROWS), "city": rng.choice(["Oslo", "Rome"], ROWS), "flag": rng.random(ROWS) > 0.5,
        "when": pd.date_range("2024-01-01", periods=ROWS).strftime("%Y-%m-%d"), "same": 1,
    })  # fmt: skip
    frame["y"] = 100 + 10 * (np.sin(frame["a"]) + (frame["city"] == "Oslo") + frame["flag"]) + rng.normal(size=ROWS)
    frame.loc[4, "a"] = np.nan
    return frame


@pytest.fixture
def table(frame, tmp_path: Path) -> Path:
    frame.to_csv(tmp_path / "t.csv", sep=";", index=False)
    return tmp_path / "t.csv"


@pytest.mark.parametrize("kept", [False, True])
def test_a_command_that_ends_early_leaves_no_folder_that_it_made(table, tmp_path, kept):
    out = tmp_path / "model"
    if kept:
        out.mkdir()
    result = invoke("fit", table, "--target", "nothing", "--out", out)
    assert result.exit_code == 2
    assert out.exists() is kept


def test_a_table_becomes_a_folder_that_predicts(table, frame, tmp_path):
    out = tmp_path / "model"
    options = ("--encode", "one-hot", "--kernel", "rbf,matern32", "--dtype", "float64")
    result = invoke("fit", table, "--target", "y", "--out", out, *options)
    assert result.exit_code == 0, result.output
    for text in (
        "dropped 1 of 120 rows with missing values; most are missing in column 'a'", "left out, constant: 'same'",
        "107 training, 12 test rows", "log p(y)/n on 107 rows", "chosen", "relevance", "The fit converged",
        f"written: {out / 'held_out.csv'}",
    ):  # fmt: skip
        assert text in said(result)
    assert {path.name for path in out.iterdir()} >= {"model.json", "model.safetensors", "held_out.csv", "fit.json"}

    held_out = pd.read_csv(out / "held_out.csv", index_col="line")
    assert list(held_out.columns) == ["y", "mean", "sd", "lower95", "upper95", "a", "city", "flag", "when", "same"]
    original = frame.set_axis(range(2, ROWS + 2))  # the header is line 1
    for column in ("a", "city", "flag", "when", "y"):
        assert held_out[column].tolist() == original.loc[held_out.index, column].tolist()
    assert 6 not in held_out.index, "the row with a missing cell"

    numbers = json.loads((out / "fit.json").read_text())
    assert numbers["error"] is None
    assert numbers["value_error"] >= 0
    assert numbers["converged"] is True
    assert numbers["candidates"][0]["kernel"] == numbers["kernel"]
    scale = json.loads((out / "model.json").read_text())["scaling"]["target"]["scale"]
    error = (held_out["mean"] - held_out["y"]) / scale
    assert numbers["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)))

    predicted = invoke("predict", out, table, "--out", tmp_path / "p.csv")
    assert predicted.exit_code == 0, predicted.output
    assert "1 of 120 rows have missing cells: no predictions" in said(predicted)
    assert "119 rows predicted, y by" in said(predicted)
    assert "RMSE" in said(predicted)
    found = pd.read_csv(tmp_path / "p.csv", index_col="line")
    assert len(found) == ROWS
    assert found["mean"].isna().tolist() == [line == 6 for line in found.index]
    pd.testing.assert_frame_equal(found.loc[held_out.index], held_out, rtol=1e-8, check_dtype=False)


def test_new_rows_need_no_target_and_no_other_columns(table, frame, tmp_path):
    out = tmp_path / "model"
    assert invoke("fit", table, "--target", "y", "--out", out, "--encode", "drop", "--drop", "when,same").exit_code == 0
    new = frame[["flag", "a"]].dropna().head(5)
    new.to_parquet(tmp_path / "new.parquet")
    result = invoke("predict", out, tmp_path / "new.parquet", "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    assert "RMSE" not in result.output
    found = pd.read_csv(tmp_path / "p.csv", index_col="row")
    assert list(found.columns) == ["mean", "sd", "lower95", "upper95", "flag", "a"]
    np.testing.assert_allclose(found["mean"], TableRegression.load(out).predict(new)["mean"])


@pytest.mark.parametrize("most", ["texts", "numbers"])
def test_codes_that_look_like_numbers_are_the_texts_that_were_fitted(tmp_path, most):
    codes = ["01", "02", "A"] * 12
    rows = [f"{code},{i % 7},{i % 7 + 3 * (code == '02') + 0.1 * (i * i % 11)}" for i, code in enumerate(codes)]
    if most == "texts":
        rows += [row.replace("01,", "B,") for row in rows[::3]]
    (tmp_path / "t.csv").write_text("\n".join(["code,x,y", *rows]))
    out = tmp_path / "model"
    fitted = invoke("fit", tmp_path / "t.csv", "--target", "y", "--encode", "one-hot", "--out", out, "--kernel", "rbf")
    assert fitted.exit_code == 0, fitted.output
    note = "line 4: column 'code' holds 'A' and is taken for text, its numbers for codes"
    assert said(fitted).count(f"Warning: t.csv: {note}") == (most == "numbers")
    model = TableRegression.load(out)
    assert model.columns.inputs[0].categories == (("01", "02", "A") if most == "numbers" else ("01", "02", "A", "B"))
    assert model.notes == ((note,) if most == "numbers" else ())
    (tmp_path / "new.csv").write_text("code,x\n02,1\n02,2\n")
    predicted = invoke("predict", out, tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert predicted.exit_code == 0, predicted.output


def test_a_named_data_set_is_kept_with_the_rows_it_counts(tmp_path):
    result = invoke("fit", "--dataset", "co2", "--n", 60, "--n-test", 5, "--out", tmp_path / "m")
    assert result.exit_code == 0, result.output
    held_out = pd.read_csv(tmp_path / "m" / "held_out.csv", index_col="row")
    assert list(held_out.index) == list(range(2221, 2226))
    kept = TableRegression.load(tmp_path / "m")
    assert (kept.kernel, kept.dtype, kept.target) == ("trend-seasonal", "float64", "co2_ppm")
    np.testing.assert_allclose(kept.predict(held_out)["mean"], held_out["mean"], rtol=1e-9)


def test_an_interrupted_fit_is_gone_on_with_by_the_same_command(table, tmp_path, monkeypatch):
    out, original, seen = tmp_path / "model", fitting.fit_mll, []

    def interrupting(mll, *, callback, **options):
        def watch(record: Record) -> None:
            callback(record)
            seen.append(record)
            if len(seen) == 8:
                raise KeyboardInterrupt

        return original(mll, callback=watch, **options)

    command = ("fit", table, "--target", "y", "--out", out, "--encode", "one-hot")
    monkeypatch.setattr(fitting, "fit_mll", interrupting)
    result = invoke(*command)
    assert result.exit_code == 130
    assert f"the best parameters so far are in {out / UNFINISHED}: the same command goes on" in said(result)
    assert [path.name for path in out.iterdir()] == [UNFINISHED]
    monkeypatch.undo()
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert f"goes on from the parameters in {out / UNFINISHED}" in said(result)
    assert UNFINISHED not in {path.name for path in out.iterdir()}


def test_what_an_earlier_fit_has_left_is_not_taken_for_this_one_s(table, tmp_path, monkeypatch):
    out = tmp_path / "model"
    out.mkdir()
    (out / UNFINISHED).write_text("{}")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit_mll", interrupted)
    result = invoke("fit", table, "--target", "y", "--out", out, "--encode", "one-hot")
    assert result.exit_code == 130
    assert f"nothing was written: {out / UNFINISHED} is what an earlier fit has left" in said(result)
    assert (out / UNFINISHED).read_text() == "{}"


def test_predictions_beside_a_later_fit_say_that_they_are_of_the_former_model(table, tmp_path):
    out = tmp_path / "model"
    assert invoke("fit", table, "--target", "y", "--out", out, "--encode", "drop", "--kernel", "rbf").exit_code == 0
    (out / UNFINISHED).write_text("{}")
    result = invoke("predict", out, table, "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    assert f"Warning: {out} holds a later fit that runs, or was interrupted: this is the model from before it" in said(
        result
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--encode", "hot"), "--encode 'hot': refuse, one-hot, drop"),
        (("--missing", "median"), "--missing 'median': drop, mean, refuse"),
        (
            ("--missing", "refuse", "--encode", "drop"),
            "line 6: column 'a' is missing: --missing drop leaves such rows out",
        ),
        (("--sep", "::"), "--sep '::': one character, or tab"),
        (("--sep", "tab"), "there is only one column, 'a;city;flag;when;same;y': is the separator another (--sep ';')"),
        (("--drop", "b"), "no column 'b'"),
        (("--decimal", ".,"), "--decimal .,: one character"),
        (("--sheet", "data"), "t.csv is no Excel file"),
        (("--kernel", "rbf,nothing"), "no kernel 'nothing'"),
        (("--kernel", "trend-seasonal", "--encode", "drop"), "needs dates as the only input"),
        (("--kernel", "auto", "--steps", 3, "--encode", "drop"), "kernels are compared by fits to convergence"),
        (("--out", "m", "--steps", 3), "--out keeps a converged model"),
        (("--dataset", "co2"), "exclude each other"),
        (("--predictions", "/no/such/folder/p.csv"), "there is no folder /no/such/folder"),
        (("--json", "/"), "--json / is a folder"),
        (("--out", "/no/such/folder"), "cannot write /no/such/folder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(table, options, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "fit_mll", pytest.fail)
    result = invoke("fit", table, "--target", "y", *options)
    assert result.exit_code == 2, result.output
    assert message in said(result)
    assert "Traceback" not in result.output


def test_options_of_tables_do_not_go_with_named_data_sets():
    result = invoke("fit", "--dataset", "co2", "--encode", "drop")
    assert result.exit_code == 2
    assert "say how DATA.csv is read" in said(result)


def test_predict_refuses_what_it_cannot_do(table, frame, tmp_path):
    out = tmp_path / "model"
    assert invoke("fit", table, "--target", "y", "--out", out, "--encode", "one-hot", "--n", 40).exit_code == 0
    for change, arguments, message in (
        (lambda f: f.drop(columns="a"), (), "new.csv, no column 'a'"),
        (lambda f: f.assign(city="Bonn"), (), "new.csv, line 2: column 'city' is 'Bonn', which no training row has"),
        (lambda f: f.assign(a="x"), (), "new.csv, line 2: column 'a' holds 'x', a text, where a number belongs"),
        (lambda f: f, ("--out", tmp_path / "no" / "p.csv"), "there is no folder"),
        (lambda f: f, ("--sep", "ab"), "--sep 'ab'"),
        (lambda f: f, ("--device", "tpu"), "no device 'tpu'"),
    ):
        change(frame).to_csv(tmp_path / "new.csv", index=False)
        result = invoke("predict", out, tmp_path / "new.csv", "--out", tmp_path / "p.csv", *arguments)
        assert result.exit_code == 2, result.output
        assert message in said(result)
        assert not (tmp_path / "p.csv").exists()
    result = invoke("predict", tmp_path, tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert result.exit_code == 2
    assert "model.json is missing" in said(result)


def test_held_out_texts_that_no_training_row_has_are_left_out_and_counted(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"city": ["Oslo", "Rome"] * 20, "x": rng.normal(size=40)})
    frame["y"] = frame["x"] + rng.normal(size=40)
    for line in range(40):
        changed = frame.copy()
        changed.loc[line, "city"] = "Bonn"
        changed.to_csv(tmp_path / "t.csv", index=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            split = load_split(tmp_path / "t.csv", "y", options=TableOptions(encode="one-hot"))
        if caught:
            assert "left out 1 held-out row with a text that no training row has" in str(caught[0].message)
            assert line + 2 not in split.held_out.index
            assert len(split.held_out) == 3
            return
    pytest.fail("no split held the row out: the test is vacuous")


def test_without_pandas_only_tables_are_refused(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for arguments in (
        ("fit", table, "--target", "y"),
        ("fit", "--dataset", "co2"),
        ("compare", table, "--target", "y"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert "tables need pandas, which is not installed: pip install 'gp-rangeformer[tables]'" in said(result)
    named = invoke("compare", "--dataset", "co2", "--n", 30, "--steps", 1, "--solvers", "exact")
    assert named.exit_code == 0, named.output
