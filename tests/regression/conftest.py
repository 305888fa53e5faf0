"""A model of a table, and the folder it is kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gp_rangeformer.regression import TableRegression
from tests.regression.rows import fit, table


@pytest.fixture(scope="module")
def model() -> Any:
    return fit(table(), target="y", kernel="rbf", encode="one-hot", dtype="float64", seed=3)


@pytest.fixture
def folder(model: TableRegression, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"
