"""The evaluation command: exact truths, fair controls, a readable file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.io
import scipy.sparse
import torch

from gp_rangeformer.checkpoint import save_checkpoint
from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerConfig
from pretrain.evaluate import evaluate_matrix, truth_of
from tests.system.systems import spectrum_matrix

ROOT = Path(__file__).parents[2]
CONFIG = RangeFormerConfig(dim=16, sketch=4, width=4, heads=2, loops=3)


def test_the_truth_is_that_of_the_spectrum() -> None:
    eigenvalues = torch.logspace(0, -2, 30, dtype=torch.float64)
    truth = truth_of(spectrum_matrix(eigenvalues), rank=4)
    assert truth.lambda_max == pytest.approx(1.0)
    assert truth.logdet == pytest.approx(float(eigenvalues.log().sum()))
    assert truth.condition == pytest.approx(100.0)
    assert truth.least_missed == pytest.approx(float(eigenvalues[4:].sum()))


def test_an_untrained_model_is_its_own_control_in_range_and_solve() -> None:
    torch.manual_seed(0)
    model = RangeFormer(CONFIG).double()
    matrix = spectrum_matrix(torch.logspace(0, -2, 30, dtype=torch.float64))
    result = evaluate_matrix(model, model, matrix, truth_of(matrix, 4), loops=3, seed=0)
    assert result["rangeformer"]["missed_trace"] == result["untrained"]["missed_trace"] >= 1
    assert result["rangeformer"]["energy"] == result["untrained"]["energy"]
    assert len(result["loops"]) == 3
    energies = [loop["energy"] for loop in result["loops"]]
    assert energies == sorted(energies, reverse=True)
    assert result["cg_equal_columns"]["energy"] < result["rangeformer"]["energy"] < result["cg"]["energy"]


def test_a_folder_of_matrices_is_evaluated_by_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "matrices"
    folder.mkdir()
    matrix = spectrum_matrix(torch.logspace(0, -1, 12, dtype=torch.float64)).numpy()
    scipy.io.mmwrite(folder / "ours.mtx", scipy.sparse.coo_matrix(matrix))
    scipy.io.mmwrite(folder / "indefinite.mtx", scipy.sparse.coo_matrix(-matrix))
    save_checkpoint(tmp_path / "model", RangeFormer(CONFIG))
    command = [sys.executable, "-m", "pretrain.evaluate", "--checkpoint", str(tmp_path / "model")]
    options = ["--matrices", str(folder), "--json", str(tmp_path / "e.json"), "--sizes", "10", "--draws", "1"]
    subprocess.run([*command, *options, "--seeds", "2"], cwd=ROOT, check=True, timeout=200, capture_output=True)
    content = json.loads((tmp_path / "e.json").read_text())
    assert str(tmp_path) not in json.dumps(content)
    rows = {(row["kind"], row["name"]): row for row in content["rows"]}
    assert ("matrix market", "ours") in rows
    assert {name for kind, name in rows if kind == "held out"} == {"identity n=10", "diagonal n=10", "toeplitz n=10"}
    assert rows["matrix market", "ours"]["evaluations"] == 2
    assert rows["matrix market", "ours"]["condition"] == pytest.approx(10.0)
    assert content["skipped"] == ["indefinite: not positive definite to rounding"]
