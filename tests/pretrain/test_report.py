"""The tables of pretrain/README.md are those of its result files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain import report


def test_the_tables_are_up_to_date() -> None:
    assert report.main(["--check"]) == 0


def test_a_table_that_was_edited_is_noticed_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (report.FOLDER / "README.md").read_text("utf-8")
    first = text.index("<!-- generated: evaluation -->\n|")
    page = tmp_path / "README.md"
    page.write_text(text[: first + 31] + "| edited " + text[first + 31 :], "utf-8")
    (tmp_path / "results").symlink_to(report.FOLDER / "results")
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    assert page.read_text("utf-8") == text
