"""The notebooks run from top to bottom, and are stored with their outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))

STEPS = "steps=30"


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_stored_with_its_outputs(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    # What a machine had to complain of (fonts, caches) says nothing to a reader.
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]

    # An exception or a failed assertion in a cell raises CellExecutionError. Fewer steps of training run the same code.
    fresh = nbformat.read(path, as_version=4)
    for cell in fresh.cells:
        cell.source = cell.source.replace(STEPS, "steps=6")
    assert fresh.cells != stored.cells
    NotebookClient(fresh, timeout=600, kernel_name="python3").execute()
    printed = [
        output.text for cell in fresh.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert any("hence replaced by Cholesky: 0" in text for text in printed)
