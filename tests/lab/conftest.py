"""What every test of the commands may do without."""

from __future__ import annotations

import pytest

from gp_rangeformer.lab.bench import stages


@pytest.fixture(autouse=True)
def small_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's fastest rate is measured on matrices of 256 rows: of 4096 it takes seconds, and shows no more."""
    monkeypatch.setattr(stages, "_SQUARE", 256)
