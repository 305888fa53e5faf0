"""How far a reader walks through one training step."""

from __future__ import annotations

import pytest

from tests.walk import Walk, walk


@pytest.mark.big
def test_a_training_step_does_not_wander(capsys: pytest.CaptureFixture[str]) -> None:
    found = walk()
    with capsys.disabled():
        print("\n" + found.summary())
    # What it is today: another file, or another way back and forth, is to be meant.
    assert len(found.files) <= 57
    assert len(found.entered) <= 314


def test_a_change_of_file_counts_once() -> None:
    found = Walk(("hooks.py", "solver.py", "hooks.py"))
    assert found.files == ["hooks.py", "solver.py"]
    assert "2 files, 3 changes of file" in found.summary()
