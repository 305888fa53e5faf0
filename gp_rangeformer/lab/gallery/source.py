"""The source of a notebook: a percent script, with the title and the claim that it begins with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode

PARAMETERS, THUMBNAIL = "parameters", "thumbnail"
# Metadata of a cell that the script says; editors and jupytext add others.
_KEPT = ("tags", "small")
_LONGEST = 240  # characters of a claim: the gallery has one sentence a notebook
_BEGINNING = re.compile(r"# (?P<title>[^\n]+)\n\n(?P<claim>[^\n]+(?:\n[^\n]+)*)")


class SourceError(ValueError):
    """A script that no notebook can be made of; the message names it and the remedy."""


@dataclass(frozen=True)
class Source:
    """``notebook``: the script's cells, numbered, without outputs."""

    path: Path
    notebook: NotebookNode
    title: str
    claim: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]


def scripts(root: Path) -> list[Path]:
    """All of them, in the repository at ``root``.

    :raises SourceError: there are none.
    """
    found = sorted((root / "examples").glob("[0-9][0-9]_*.py"))
    if not found:
        raise SourceError(f"{root} has no examples/NN_name.py: name a clone of the repository by --root")
    return found


def notebook_of(script: Path) -> Path:
    """Where the notebook of a script is."""
    return script.with_suffix(".ipynb")


def read_source(path: Path) -> Source:
    """:raises SourceError: the script does not begin with a title and a sentence, or lacks a tag's cell."""
    notebook: Any = jupytext.read(path, fmt="py:percent")
    cells = notebook.cells
    beginning = _BEGINNING.match(cells[0].source) if cells and cells[0].cell_type == "markdown" else None
    if beginning is None:
        raise SourceError(f"{path}: begin with a cell '# %% [markdown]': a title '# ...', a blank line, a sentence")
    claim = " ".join(beginning["claim"].split())
    if len(claim) > _LONGEST:
        raise SourceError(f"{path}: the first paragraph has {len(claim)} characters: one sentence, {_LONGEST} at most")
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index:02}"
        cell.metadata = {name: cell.metadata[name] for name in _KEPT if name in cell.metadata}
    for tag, most in ((THUMBNAIL, 1), (PARAMETERS, 1)):
        count = sum(tag in tags(cell) for cell in cells)
        if count > most or (tag == THUMBNAIL and not count):
            raise SourceError(f"{path}: {count} cells are tagged {tag!r}: tag one, as in '# %% tags=[\"{tag}\"]'")
    return Source(path, notebook, beginning["title"], claim)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def same_cells(one: NotebookNode, other: NotebookNode) -> bool:
    """Whether two notebooks have the same cells, outputs and numbers of executions aside."""
    return [_key(cell) for cell in one.cells] == [_key(cell) for cell in other.cells]


def _key(cell: NotebookNode) -> tuple[str, str, dict[str, Any]]:
    return cell.cell_type, cell.source, dict(cell.metadata)
