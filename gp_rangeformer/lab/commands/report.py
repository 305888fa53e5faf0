"""``gp-rangeformer report``: what a fitted model is worth, on one page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.commands.console import FAILED, open_console, refuse, say_written
from gp_rangeformer.lab.outputs import Outputs


def report(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `fit --out` wrote.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.", show_default="MODEL/report.html")] = None,
) -> None:
    """Write one page on a fitted model: certificates, calibration, residuals, relevance of columns and effects."""
    from gp_rangeformer.lab.model_report import REPORT, write_report
    from gp_rangeformer.regression.errors import SavedModelError, TableError

    outputs, path = Outputs(), out or model / REPORT
    try:
        outputs.write(path, partial(write_report, model, path))
    except (ImportError, SavedModelError, TableError) as error:
        refuse(error)
    except (ArithmeticError, RuntimeError) as error:
        open_console(stderr=True).print(f"The report failed: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    say_written(outputs)
    outputs.finish()
