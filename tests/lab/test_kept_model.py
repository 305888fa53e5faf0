"""What ``fit`` finds in the folder that it is to keep a model in, and leaves there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer import atomic
from gp_rangeformer.regression import TableRegression, fitting
from gp_rangeformer.regression.files import REPORT
from tests.lab.commands import invoke, said


def rows(n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n)})
    return frame.assign(y=np.sin(frame["a"]) + 0.1 * rng.normal(size=n), z=frame["b"] + 0.1 * rng.normal(size=n))


def fit(frame: Any, out: Path, *options: object) -> Any:
    """``gp-rangeformer fit`` of the column y, unless ``options`` name another."""
    path = out.parent / "table.csv"
    frame.to_csv(path, index=False)
    return invoke("fit", path, "--target", "y", "--kernel", "rbf", "--dtype", "float64", "--out", out, *options)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``fit`` of y given a and b leaves it."""
    folder = tmp_path_factory.mktemp("fit") / "model"
    result = fit(rows(40), folder, "--drop", "z")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def model(fitted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(fitted, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("full", ["model.safetensors", "model.json"])
def test_a_disk_too_full_for_the_model_leaves_the_former_one_with_all_that_is_its(model, monkeypatch, full):
    before, original = contents(model), atomic._staged

    def fails(path: Path, content: bytes) -> str:
        if path.name == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, content)

    monkeypatch.setattr(atomic, "_staged", fails)
    result = fit(rows(60, seed=1), model, "--drop", "z")
    assert result.exit_code == 1
    assert f"Error: cannot write {model / full}" in said(result)
    assert "test RMSE" in result.stdout
    after = contents(model)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() <= {"unfinished.json"}


@pytest.mark.parametrize("copied", [("held_out.csv",), ("held_out.csv", "fit.json")])
def test_held_out_rows_of_another_model_are_not_reported(model, tmp_path, copied):
    other = tmp_path / "other"
    assert fit(rows(60, seed=1), other, "--drop", "z").exit_code == 0
    assert "held-out rows the RMSE is" in (model / REPORT).read_text("utf-8")
    for name in copied:
        shutil.copy(other / name, model / name)
    result = invoke("report", model)
    assert result.exit_code == 0, result.output
    assert f"Warning: {model / 'held_out.csv'} is of another model than the one beside it" in said(result)
    assert "held-out rows the RMSE is" not in (model / REPORT).read_text("utf-8")


def test_held_out_rows_of_the_model_are_reported(model):
    page = (model / REPORT).read_text("utf-8")
    result = invoke("report", model)
    assert "Warning" not in result.output
    assert "held-out rows the RMSE is" in page
    assert "held-out rows the RMSE is" in (model / REPORT).read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--drop", "z,b"), "'y' given 'a'"),
        ((), "'y' given 'z', 'a', 'b'"),
        (("--target", "z", "--drop", "y"), "'z' given 'a', 'b'"),
    ],
)
def test_a_model_of_other_columns_is_replaced_only_if_asked_for(model, monkeypatch, options, wanted):
    before = contents(model)
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "fit_mll", pytest.fail)
        refused = fit(rows(50), model, *options)
    assert refused.exit_code == 2
    kept = "'y' given 'b', 'a'" if options == ("--drop", "z,b") else "'y' given 'a', 'b'"
    message = f"{model} holds a model of {kept}, and this one would be of {wanted}: choose another --out, or --replace"
    assert message in said(refused)
    assert contents(model) == before
    replaced = fit(rows(50), model, *options, "--replace")
    assert replaced.exit_code == 0, replaced.output
    assert f"Warning: will replace the model of 36 rows in {model}" in said(replaced)
    assert len(TableRegression.load(model).training_frame()) == 45


def test_a_model_of_the_same_columns_is_replaced_and_that_is_said(model):
    result = fit(rows(50)[["y", "b", "a", "z"]], model, "--drop", "z")
    assert result.exit_code == 0, result.output
    assert f"Warning: will replace the model of 36 rows in {model}" in said(result)


def reformatted(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda folder: reformatted(folder / "model.json"), "has format 3, of gp-rangeformer"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "or is damaged: restore both or fit again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.json").unlink(), "model.json is missing"),
    ],
)
def test_a_model_that_cannot_be_read_is_replaced_only_if_asked_for(model, monkeypatch, spoil, wanted):
    spoil(model)
    before = contents(model)
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "fit_mll", pytest.fail)
        refused = fit(rows(50), model, "--drop", "z")
    assert refused.exit_code == 2
    message = f"{model} holds a model that cannot be read, and would be replaced: choose another --out, or --replace."
    assert message in said(refused)
    assert wanted in said(refused)
    assert contents(model) == before
    replaced = fit(rows(50), model, "--drop", "z", "--replace")
    assert replaced.exit_code == 0, replaced.output
    assert f"Warning: will replace the model in {model}, which cannot be read" in said(replaced)
    assert len(TableRegression.load(model).training_frame()) == 45


def test_what_is_no_model_and_what_has_not_ended_hinders_no_fit(model, monkeypatch):
    def interrupting(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    (model / "model.safetensors").unlink()
    (model / "model.json").unlink()
    (model / "unfinished.json").write_text("{}")
    monkeypatch.setattr(fitting, "fit_mll", interrupting)
    result = fit(rows(50), model)
    assert result.exit_code == 130
    assert "replace" not in result.output


@pytest.mark.parametrize("options", [(), ("--replace",)])
def test_of_two_fits_that_run_together_none_loses_its_model(tmp_path, monkeypatch, options):
    """The fit of z begins and ends while that of y runs; NAME-1 is there already, of something else."""
    out, beside, original = tmp_path / "m", tmp_path / "m-2", fitting.fit_mll
    (tmp_path / "m-1").mkdir()

    def fit_another_first(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(fitting, "fit_mll", original)
        other = fit(rows(50), out, "--target", "z", "--drop", "y")
        assert other.exit_code == 0, other.output
        return original(*arguments, **named)

    monkeypatch.setattr(fitting, "fit_mll", fit_another_first)
    result = fit(rows(40), out, "--drop", "z", *options)
    assert result.exit_code == 0, result.output
    assert f"another fit has kept its model in {out} while this one ran: that stays, and this model is in {beside}" in (
        said(result)
    )
    assert f"written: {beside} written: {beside / 'held_out.csv'}" in said(result)
    models = [TableRegression.load(folder) for folder in (out, beside)]
    assert [(model.target, len(model.training_frame())) for model in models] == [("z", 45), ("y", 36)]
    assert invoke("report", beside).exit_code == 0
    assert contents(beside).keys() == contents(out).keys()
    assert not contents(tmp_path / "m-1")


def test_of_a_model_of_many_columns_those_that_differ_are_named(model, monkeypatch):
    wide = rows(50).join(pd.DataFrame(np.random.default_rng(1).normal(size=(50, 20))).rename(columns="c{:02}".format))
    monkeypatch.setattr(fitting, "fit_mll", pytest.fail)
    result = fit(wide.drop(columns="b"), model, "--drop", "z")
    assert "of 'y' given 'b', 'a', and this one would be of 'y' given 'c00', 'c01'" in said(result)
    assert "'c07' and 13 more: choose another" in said(result)


def test_replacing_names_a_folder(tmp_path):
    rows(20).to_csv(tmp_path / "t.csv", index=False)
    result = invoke("fit", tmp_path / "t.csv", "--target", "y", "--replace")
    assert result.exit_code == 2
    assert "--replace is about the model in a folder: name it with --out" in said(result)


FILES = ["model.json", "model.safetensors", "held_out.csv", "fit.json", "report.html", "unfinished-1.json"]


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_model_is_written_over(model, monkeypatch, name):
    monkeypatch.setattr(fitting, "fit_mll", pytest.fail)
    (model / "unfinished-1.json").write_text("{}")
    table, path, before = model.parent / "table.csv", model / ".." / "model" / name, contents(model)
    rows(20).to_csv(table, index=False)
    commands = [
        ("predict", model, table, "--out", path),
        ("fit", table, "--target", "y", "--json", path),
        ("fit", table, "--target", "y", "--predictions", path),
        ("fit", table, "--target", "y", "--out", model.parent / "new", "--json", model.parent / "new" / name),
    ]
    if name != "report.html":
        commands.append(("report", model, "--out", path))
    for command in commands:
        result = invoke(*command)
        assert result.exit_code == 2, command
        assert f"{command[-2]} {command[-1]} is a file of the model in" in said(result)
        assert contents(model) == before


def test_other_files_may_stand_in_the_folder_of_a_model_and_its_page_is_made_anew(model):
    (model / "report.html").unlink()
    assert invoke("report", model, "--out", model / "report.html").exit_code == 0
    assert invoke("report", model, "--out", model / "other.html").exit_code == 0
    elsewhere = model.parent / "fit.json"
    rows(20).to_csv(model.parent / "t.csv", index=False)
    assert invoke("fit", model.parent / "t.csv", "--target", "y", "--kernel", "rbf", "--json", elsewhere).exit_code == 0
    assert elsewhere.is_file()


def test_a_report_beside_a_later_fit_says_so_as_other_commands_do(model):
    (model / "unfinished.json").write_text("{}")
    result = invoke("report", model)
    assert result.exit_code == 0, result.output
    assert f"Warning: {model} holds a later fit" in said(result)
    assert "TableWarning" not in result.output


def test_the_error_without_a_row_is_in_the_unit_of_the_target(tmp_path):
    frame = rows(40)
    result = fit(frame.assign(y=1000 * frame["y"]), tmp_path / "m", "--drop", "z")
    wanted = TableRegression.load(tmp_path / "m").leave_one_out().rmse
    assert wanted > 10
    assert f"nats per standardised point, RMSE {wanted:.5g} in y; " in result.stdout
