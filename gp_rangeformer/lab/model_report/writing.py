"""The report as a file, beside the model or elsewhere."""

from __future__ import annotations

from pathlib import Path

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.model_report.page import render
from gp_rangeformer.regression import TableRegression
from gp_rangeformer.regression.reading import read_table

REPORT, HELD_OUT = "report.html", "held_out.csv"


def write_report(folder: Path, path: Path) -> None:
    """Write the report of the model in ``folder`` to ``path``, with what ``held_out.csv`` there says of it.

    :raises SavedModelError: as :meth:`gp_rangeformer.regression.TableRegression.load`.
    :raises TableError: ``held_out.csv`` is damaged.
    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    model = TableRegression.load(folder)
    held_out = folder / HELD_OUT
    page = render(model, read_table(held_out) if held_out.exists() else None)
    write_bytes(path, page.encode("utf-8"))
