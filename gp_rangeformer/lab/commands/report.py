"""``gp-rangeformer report``: what a fitted model is worth, on one page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.commands.console import FAILED, open_console, refuse, say_written, show_status
from gp_rangeformer.lab.commands.options import check_output
from gp_rangeformer.lab.outputs import Outputs


def report(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `fit --out` wrote.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.", show_default="MODEL/report.html")] = None,
) -> None:
    """Write one page on a fitted model: certificates, calibration, residuals, relevance of columns and effects."""
    from gp_rangeformer.lab.model_report import write_report
    from gp_rangeformer.regression import SavedModelError, TableError, TableRegression, read_table
    from gp_rangeformer.regression.files import HELD_OUT, REPORT

    outputs, path = Outputs(), out or model / REPORT
    check_output("--out", out)
    try:
        kept, held_out = TableRegression.load(model), model / HELD_OUT
        rows = read_table(held_out) if held_out.is_file() else None
        with show_status() as say:
            say("leave-one-out predictions and effects")
            outputs.write(path, partial(write_report, kept, path, rows))
    except (ImportError, SavedModelError, TableError) as error:
        refuse(error)
    except (ArithmeticError, RuntimeError) as error:
        open_console(stderr=True).print(f"The report failed: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    say_written(outputs)
    outputs.finish()
