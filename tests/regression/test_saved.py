"""A model of a table is kept, read again and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gpytorch
import pandas as pd
import pytest
import torch

from gp_rangeformer.atomic import WriteError
from gp_rangeformer.regression import SavedModelError, TableRegression
from gp_rangeformer.regression.files import sealed, unsealed
from tests.regression.rows import fit, table


def test_a_model_that_is_read_is_the_one_that_was_saved(model, folder):
    found: Any = TableRegression.load(folder)
    pd.testing.assert_frame_equal(found.predict(table()), model.predict(table()), rtol=1e-12)
    pd.testing.assert_frame_equal(found.training_frame(), model.training_frame())
    pd.testing.assert_series_equal(found.relevance(), model.relevance())
    assert found.hyperparameters() == model.hyperparameters()
    assert (found.columns, found.kernel, found.dtype, found.seed) == (model.columns, "rbf", "float64", 3)
    assert found.fit_result.history == model.fit_result.history
    assert found.certificate() == model.certificate()
    assert found.leave_one_out().score == pytest.approx(model.leave_one_out().score, rel=1e-10)


def test_a_model_that_was_read_can_be_saved_again(folder, tmp_path):
    TableRegression.load(folder).save(tmp_path / "again")
    first, second = (unsealed((path / "model.json").read_bytes()) for path in (folder, tmp_path / "again"))
    assert {**first, "fit": {**first["fit"], "report": None}} == second


def test_the_description_can_be_read_by_people(model, folder):
    content = json.loads((folder / "model.json").read_text())
    assert content["target"] == "y"
    assert content["scaling"]["inputs"]["a"]["mean"] == pytest.approx(float(table()["a"].mean()))
    assert content["hyperparameters"] == model.hyperparameters()
    assert content["fit"]["converged"] is True
    assert set(content["versions"]) == {"gp-rangeformer", "torch", "gpytorch"}


def rewrite(folder: Path, **changes: object) -> None:
    """As whoever wrote it might have written it."""
    path = folder / "model.json"
    path.write_bytes(sealed({**unsealed(path.read_bytes()), **changes}))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model.json").unlink(), "model.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.json").write_text("{"), "model.json is damaged"),
        (lambda f: (f / "model.json").write_text("[]"), "model.json is damaged"),
        (lambda f: rewrite(f, format=3), "format 3.*this version reads 2: pip install -U"),
        (lambda f: edit(f, format=1), "format 1, of gp-rangeformer .*this version reads 2"),
        (lambda f: edit(f, target="z"), "model.json is damaged, or was edited .*: restore it or fit again"),
        (lambda f: edit(f, sha256="0"), "model.json is damaged, or was edited"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "does not belong to the model.json beside it"),
        (lambda f: rewrite(f, columns={"missing": "drop", "inputs": []}), "does not fit this version.*fit again"),
        (
            lambda f: rewrite(f, kernel={"name": "rq", "title": "rq", "structure": "?"}),
            "is not the one that was fitted",
        ),
        (lambda f: rewrite(f, fit={"value": 1.0}), "does not fit this version"),
    ],
)
def test_spoilt_folders_are_refused_with_a_remedy(folder, spoil, said):
    spoil(folder)
    with pytest.raises(SavedModelError, match=f"(?s){said}"):
        TableRegression.load(folder)


def test_files_of_two_models_do_not_mix(folder, tmp_path):
    other = fit(table()[["a", "y"]], target="y", kernel="rbf")
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(SavedModelError, match="does not belong"):
        TableRegression.load(folder)


def test_a_kernel_that_was_given_is_given_again(tmp_path):
    frame = table()[["a", "b", "y"]]

    def kernel(dims: int = 2) -> Any:
        return gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=dims))

    found = fit(frame, target="y", kernel=kernel())
    assert found.kernel == "ScaleKernel"
    found.save(tmp_path / "m")
    with pytest.raises(SavedModelError, match="given as a module, ScaleKernel: make a fresh one"):
        TableRegression.load(tmp_path / "m")
    with pytest.raises(SavedModelError, match="is not the one that was fitted"):
        TableRegression.load(tmp_path / "m", kernel=gpytorch.kernels.RBFKernel())
    again = TableRegression.load(tmp_path / "m", kernel=kernel())
    pd.testing.assert_frame_equal(again.predict(frame), found.predict(frame), rtol=1e-6)


def test_a_kernel_that_is_given_twice_makes_two_models(tmp_path):
    """The fit of other targets moves neither the first model nor the kernel; nor does reading a model with it."""
    frame = table()[["a", "b", "y"]]
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))
    before = {name: value.clone() for name, value in kernel.state_dict().items()}
    first = fit(frame, target="y", kernel=kernel)
    predicted = first.predict(frame)
    fit(frame.assign(y=frame["b"]), target="y", kernel=kernel)
    pd.testing.assert_frame_equal(first.predict(frame), predicted)
    first.save(tmp_path / "m")
    pd.testing.assert_frame_equal(
        TableRegression.load(tmp_path / "m", kernel=kernel).predict(frame), predicted, rtol=1e-6
    )
    assert all(torch.equal(value, before[name]) for name, value in kernel.state_dict().items())


def test_a_folder_without_a_parent_is_refused_before_the_fit(tmp_path, model):
    for folder in (tmp_path / "no" / "folder", tmp_path / "file" / "model"):
        (tmp_path / "file").touch()
        with pytest.raises(WriteError, match="cannot write"):
            fit(table(), target="y", kernel="rbf", folder=folder, callback=pytest.fail)
        with pytest.raises(WriteError, match="cannot write"):
            model.save(folder)


def test_a_kernel_that_shares_tensors_with_itself_is_kept(tmp_path):
    def kernel() -> Any:
        one = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(active_dims=(0,)))
        return one * one + one

    frame = table()[["a", "b", "y"]]
    found = fit(frame, target="y", kernel=kernel(), dtype="float64")
    found.save(tmp_path / "m")
    again = TableRegression.load(tmp_path / "m", kernel=kernel())
    pd.testing.assert_frame_equal(again.predict(frame), found.predict(frame), rtol=1e-9)


def test_a_kernel_that_prints_alike_and_is_another_is_refused(tmp_path):
    def kernel(nu: float) -> Any:
        return gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu))

    assert repr(kernel(0.5)) == repr(kernel(2.5))
    fit(table()[["a", "y"]], target="y", kernel=kernel(0.5)).save(tmp_path / "m")
    with pytest.raises(SavedModelError, match="its values are others"):
        TableRegression.load(tmp_path / "m", kernel=kernel(2.5))


def test_what_belongs_to_a_former_model_goes_with_it(folder, model):
    for name in ("held_out.csv", "fit.json", "report.html", "notes.txt"):
        (folder / name).write_text("of another model")
    model.save(folder)
    assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors", "notes.txt"}
