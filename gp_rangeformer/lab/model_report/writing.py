"""The report as a file, beside the model or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.model_report.page import render
from gp_rangeformer.regression import TableRegression

if TYPE_CHECKING:
    import pandas as pd


def write_report(model: TableRegression, path: Path, held_out: pd.DataFrame | None = None) -> None:
    """Write :func:`~gp_rangeformer.lab.model_report.page.render`'s page to ``path``.

    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    write_bytes(path, render(model, held_out).encode("utf-8"))
