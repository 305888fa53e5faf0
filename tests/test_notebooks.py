"""The notebooks are those of their scripts, stored with outputs, and every cell runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gp_rangeformer.lab.gallery.__main__ import ROOT, main, stale
from gp_rangeformer.lab.gallery.page import page_of
from gp_rangeformer.lab.gallery.source import PARAMETERS, SourceError, notebook_of, read_source, scripts, tags
from gp_rangeformer.lab.gallery.thumbnail import thumbnail_of

SCRIPTS = scripts(ROOT)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the command reads and writes, to be spoilt."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def test_notebooks_thumbnails_and_page_are_up_to_date(capsys) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_stored_with_its_outputs(script: Path) -> None:
    stored = nbformat.read(notebook_of(script), as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_every_cell_runs_with_small_sizes() -> None:
    """A failed assertion of a cell fails here. One process for all, so that torch is imported once."""
    command = [sys.executable, "-m", "gp_rangeformer.lab.gallery", "--small"]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line.partition(":")[0] for line in run.stdout.splitlines()] == [script.stem for script in SCRIPTS]


@pytest.mark.big
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_built(script: Path, clone: Path) -> None:
    assert main([script.stem, "--root", str(clone)]) == 0
    assert not [path for path in stale(clone) if path.stem == script.stem]


def test_small_sizes_are_those_that_a_cell_assigns() -> None:
    for script in SCRIPTS:
        for cell in read_source(script).code:
            if PARAMETERS in tags(cell):
                names: dict[str, object] = {}
                exec(cell.source, names)
                assert set(cell.metadata["small"]) <= set(names)


def test_what_is_out_of_date_is_named(clone: Path, capsys) -> None:
    first = scripts(clone)[0]
    first.write_text(first.read_text("utf-8") + "\n# %%\nprint(1)\n", "utf-8")
    assert list(stale(clone)) == [notebook_of(first)]
    assert main(["--check", "--root", str(clone)]) == 1
    assert str(notebook_of(first)) in capsys.readouterr().out


def test_a_missing_notebook_thumbnail_or_script_is_named(clone: Path) -> None:
    first = scripts(clone)[0]
    thumbnail_of(first).unlink()
    assert list(stale(clone)) == [thumbnail_of(first)]
    shutil.copy(notebook_of(first), notebook_of(first).with_stem("99_nothing"))
    assert notebook_of(first).with_stem("99_nothing") in stale(clone)
    notebook_of(first).unlink()
    assert stale(clone)[notebook_of(first)] == "not built yet"


def test_a_page_that_was_edited_is_named(clone: Path) -> None:
    page_of(clone).write_text(page_of(clone).read_text("utf-8") + "typed\n", "utf-8")
    assert list(stale(clone)) == [page_of(clone)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("# %% [markdown]\n# # ", "# %% [markdown]\n# ", 1), "begin with a cell"),
        (lambda text: text.replace('tags=["thumbnail"]', "", 1), "0 cells are tagged 'thumbnail'"),
    ],
)
def test_a_script_without_title_or_thumbnail_is_refused(clone: Path, spoil, message: str, capsys) -> None:
    first = scripts(clone)[0]
    first.write_text(spoil(first.read_text("utf-8")), "utf-8")
    with pytest.raises(SourceError, match=message):
        read_source(first)
    assert main([first.stem, "--root", str(clone)]) == 1
    assert message in capsys.readouterr().err


def test_a_cell_that_raises_is_told_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    (tmp_path / "examples").mkdir()
    script = tmp_path / "examples" / "01_fails.py"
    text = '# %% [markdown]\n# # Title\n#\n# Claim.\n\n# %% tags=["parameters"] small={"N": 2}\nN = 100\n\n'
    script.write_text(text + '# %% tags=["thumbnail"]\nassert N == 3, f"N is {N}"\n', "utf-8")
    assert main(["--small", "--root", str(tmp_path)]) == 1
    assert "AssertionError: N is 2" in capsys.readouterr().out
    assert list(script.parent.iterdir()) == [script]
