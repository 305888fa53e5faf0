"""The notebooks are those of their scripts, stored with outputs, and every cell runs."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.gallery.__main__ import ROOT, main, stale
from gp_rangeformer.lab.gallery.build import BUILT
from gp_rangeformer.lab.gallery.page import page, page_of
from gp_rangeformer.lab.gallery.source import PARAMETERS, SourceError, notebook_of, read_source, scripts, tags
from gp_rangeformer.lab.gallery.thumbnail import WIDTH, thumbnail_of, write_thumbnail

SCRIPTS = scripts(ROOT)
SCRIPT = """# %% [markdown]
# # Title
#
# What the cells show.

# %% tags=["parameters"] small={"N": 2}
N = 100

# %% tags=["thumbnail"]
assert N in (2, 100), f"N is {N}"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of one notebook, as if built, to be spoilt."""
    script = tmp_path / "examples" / "01_title.py"
    script.parent.mkdir()
    script.write_text(SCRIPT, "utf-8")
    picture = io.BytesIO()
    Image.new("RGB", (800, 400), "white").save(picture, format="png")
    source = read_source(script)
    notebook = read_source(script).notebook
    data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
    notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", data=data)]
    notebook.metadata[BUILT] = {"seconds": 3, "machine": "a machine"}
    nbformat.write(notebook, notebook_of(script))
    write_thumbnail(script, notebook)
    write_bytes(page_of(tmp_path), page([(source, notebook)]).encode())
    assert stale(tmp_path) == {}
    return tmp_path


def spoil(script: Path, old: str, new: str) -> None:
    text = script.read_text("utf-8")
    assert old in text
    script.write_text(text.replace(old, new), "utf-8")


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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line.partition(":")[0] for line in run.stdout.splitlines()] == [script.stem for script in SCRIPTS]


@pytest.mark.big
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_built(script: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "pretrain").symlink_to(ROOT / "pretrain")  # which one of them imports from
    assert main([script.stem, "--root", str(tmp_path)]) == 0
    assert not [path for path in stale(tmp_path) if path.stem == script.stem]


def test_small_sizes_are_those_that_a_cell_assigns() -> None:
    for script in SCRIPTS:
        for cell in read_source(script).code:
            if PARAMETERS in tags(cell):
                names: dict[str, object] = {}
                exec(cell.source, names)
                assert set(cell.metadata["small"]) <= set(names)


def test_a_cell_that_differs_is_named(clone: Path, capsys) -> None:
    (script,) = scripts(clone)
    spoil(script, "N = 100", "N = 101")
    assert list(stale(clone)) == [notebook_of(script)]
    assert main(["--check", "--root", str(clone)]) == 1
    assert str(notebook_of(script)) in capsys.readouterr().out


def test_other_sizes_of_quick_runs_are_a_difference(clone: Path) -> None:
    (script,) = scripts(clone)
    spoil(script, '{"N": 2}', '{"N": 3}')
    assert list(stale(clone)) == [notebook_of(script)]


def test_a_missing_notebook_thumbnail_or_script_is_named(clone: Path) -> None:
    (script,) = scripts(clone)
    picture = thumbnail_of(script)
    with Image.open(picture) as image:
        assert image.size == (WIDTH, WIDTH // 2)
    other = notebook_of(script).with_stem("99_nothing")
    shutil.copy(notebook_of(script), other)
    assert list(stale(clone)) == [other]
    other.unlink()
    picture.unlink()
    assert list(stale(clone)) == [picture]
    notebook_of(script).unlink()
    assert stale(clone)[notebook_of(script)] == "not built yet"


def test_a_thumbnail_of_another_figure_is_named(clone: Path) -> None:
    (script,) = scripts(clone)
    Image.new("RGB", (WIDTH, WIDTH // 2), "black").save(thumbnail_of(script))
    assert list(stale(clone)) == [thumbnail_of(script)]


def test_a_page_that_was_edited_is_named(clone: Path) -> None:
    spoil(page_of(clone), "What the cells show.", "What was typed.")
    assert list(stale(clone)) == [page_of(clone)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# # Title", "# Title", "begin with a cell"),
        ("What the cells show.", "What " + 60 * "they show ", "one sentence"),
        (' tags=["thumbnail"]', "", "0 cells are tagged 'thumbnail'"),
        ('tags=["parameters"]', 'tags=["thumbnail"]', "2 cells are tagged 'thumbnail'"),
    ],
)
def test_a_script_that_makes_no_notebook_is_refused(clone: Path, old: str, new: str, message: str, capsys) -> None:
    (script,) = scripts(clone)
    spoil(script, old, new)
    with pytest.raises(SourceError, match=message):
        read_source(script)
    assert main([script.stem, "--root", str(clone)]) == 1
    assert message in capsys.readouterr().err


def test_names_that_are_not_there_are_refused(clone: Path, tmp_path: Path, capsys) -> None:
    assert main(["01_titel", "--check", "--root", str(clone)]) == 1
    assert "there are 01_title" in capsys.readouterr().err
    assert main(["--root", str(tmp_path / "examples")]) == 1
    assert "name a clone" in capsys.readouterr().err


def test_a_quick_run_takes_small_sizes_and_tells_what_a_cell_raised(clone: Path, capsys) -> None:
    (script,) = scripts(clone)
    before = notebook_of(script).read_bytes()
    assert main(["--small", "--root", str(clone)]) == 0
    capsys.readouterr()
    spoil(script, "N in (2, 100)", "N == 100")
    assert main(["--small", "--root", str(clone)]) == 1
    assert "AssertionError: N is 2" in capsys.readouterr().out
    spoil(script, '{"N": 2}', '{"M": 2}')
    assert main(["--small", "--root", str(clone)]) == 1
    assert "assigns no M" in capsys.readouterr().out
    assert notebook_of(script).read_bytes() == before
