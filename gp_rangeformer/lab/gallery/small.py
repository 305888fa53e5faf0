"""Scripts run with small sizes: every cell, nothing written, in a process of their own."""

from __future__ import annotations

import contextlib
import io
import linecache
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from gp_rangeformer.lab.gallery.source import PARAMETERS, SourceError, read_source, tags


def run_small(script: Path) -> tuple[float, str | None]:
    """Run all cells of ``script``. Returns the seconds it took, and, where a cell raised, what was printed with the
    traceback.

    In a fork of this process where that is safe, so that what it imports is imported once, and no script sees what
    another one set.
    """
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with warnings.catch_warnings():
        # From Python 3.12 on, of forks where libraries keep idle threads: none has worked here yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        with context.Pool(1) as pool:
            return pool.apply(_run, (script,))


def _run(script: Path) -> tuple[float, str | None]:
    plt.switch_backend("Agg")
    warnings.filterwarnings("ignore", message=".*non-interactive.*")  # plt.show()
    started, failed, said = time.perf_counter(), None, io.StringIO()
    try:
        os.chdir(script.parent)  # as in a notebook
        with contextlib.redirect_stdout(said):
            _execute(script)
    except Exception:
        failed = said.getvalue() + traceback.format_exc()
    return time.perf_counter() - started, failed


def _execute(script: Path) -> None:
    """:raises SourceError: a small size is not assigned by the cell that it belongs to."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(read_source(script).code, start=1):
        where = f"{script.name}, code cell {number}"
        linecache.cache[where] = (len(cell.source), None, cell.source.splitlines(keepends=True), where)
        exec(compile(cell.source, where, "exec"), names)
        if PARAMETERS in tags(cell):
            sizes = cell.metadata.get("small", {})
            unknown = [name for name in sizes if name not in names]
            if unknown:
                raise SourceError(f"{where}: assigns no {', '.join(unknown)}, which 'small' names")
            names.update(sizes)
