"""``gp-rangeformer report``: what a fitted model is worth, on one page."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gp_rangeformer.lab.commands.console import FAILED, open_console, refuse, show_status
from gp_rangeformer.lab.commands.options import check_output, saying_warnings
from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    import pandas as pd


def report(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `fit --out` wrote.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.", show_default="MODEL/report.html")] = None,
) -> None:
    """Write one page on a fitted model: certificates, calibration, residuals, relevance of columns and effects."""
    from gp_rangeformer.lab.model_report import write_report
    from gp_rangeformer.regression import SavedModelError, TableError, TableRegression
    from gp_rangeformer.regression.files import REPORT

    outputs, path = Outputs(), out or model / REPORT
    if path.resolve() != (model / REPORT).resolve():
        check_output("--out", path)
        _check_page(path)
    try:
        with saying_warnings():
            kept, rows = TableRegression.load(model), _held_out(model)
        with saying_warnings(), show_status() as say:
            say("leave-one-out predictions and effects")
            outputs.write(path, partial(write_report, kept, path, rows))
    except (ImportError, SavedModelError, TableError) as error:
        refuse(error)
    except (ArithmeticError, RuntimeError) as error:
        open_console(stderr=True).print(f"The report failed: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    outputs.say_written()
    outputs.finish()


def _check_page(path: Path) -> None:
    """A table is not replaced by a page."""
    if path.is_file() and path.suffix.lower() not in (".html", ".htm"):
        refuse(f"--out {path} is there and no .html file: choose another path, or remove it")


def _held_out(folder: Path) -> pd.DataFrame | None:
    """The rows that were kept with the model; those of another one would be taken for what this one is worth."""
    from gp_rangeformer.regression import TableWarning
    from gp_rangeformer.regression.files import HELD_OUT, belongs_together
    from gp_rangeformer.regression.predictions import read_predictions

    path = folder / HELD_OUT
    if not path.is_file():
        return None
    if not belongs_together(folder):
        said = "is of another model than the one beside it, or was changed: the report is made without it"
        warnings.warn(f"{path} {said}; fit again to have held-out rows", TableWarning, stacklevel=2)
        return None
    return read_predictions(path)
