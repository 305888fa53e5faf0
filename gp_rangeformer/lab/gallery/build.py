"""One notebook from its script: executed, cleaned of what says nothing to a reader, and written."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.compare.machine import one_line
from gp_rangeformer.lab.gallery.source import Source, notebook_of

# Metadata of a notebook that hold what the page says of its execution.
BUILT = "gallery"
_SECONDS = 600  # after which a cell is given up


class BuildError(RuntimeError):
    """A script that did not run to its end; the message has the traceback. Nothing was written."""


def build(source: Source) -> tuple[NotebookNode, list[str]]:
    """Execute ``source`` in a fresh kernel, in the folder of the script, and write the notebook.

    Returns it, and what cells wrote to stderr, which is not stored.

    :raises BuildError: a cell raised, or ran for ten minutes.
    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    notebook = copy.deepcopy(source.notebook)
    started = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.path.parent)}},
    )
    try:
        client.execute()
    except (CellExecutionError, TimeoutError) as error:
        raise BuildError(f"{source.path}: {error}") from error
    seconds = time.perf_counter() - started
    left_out = _take_stderr(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
        BUILT: {"seconds": round(seconds), "machine": one_line()},
    }
    nbformat.validate(notebook)
    write_bytes(notebook_of(source.path), (nbformat.writes(notebook) + "\n").encode())
    return notebook, left_out


def stored(script: Path) -> NotebookNode | None:
    """The notebook as it was written, or None."""
    path = notebook_of(script)
    return nbformat.read(path, as_version=4) if path.is_file() else None


def _take_stderr(notebook: Any) -> list[str]:
    """Remove it: what a machine had to complain of (fonts, caches) says nothing to a reader."""
    taken = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            taken += [output.text for output in cell.outputs if output.get("name") == "stderr"]
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return taken
