"""``gp-rangeformer predict``: what a kept model says of new rows."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gp_rangeformer.lab.commands.console import (
    FAILED,
    INTERRUPTED,
    open_console,
    refuse,
    show_progress,
)
from gp_rangeformer.lab.commands.options import (
    DayFirst,
    Decimal,
    Device,
    Encoding,
    Sep,
    Sheet,
    Thousands,
    check_device,
    check_output,
    saying_warnings,
    table_options,
)
from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    import pandas as pd

    from gp_rangeformer.regression import TableRegression


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `fit --out` wrote.")],
    data: Annotated[Path, typer.Argument(metavar="DATA.csv", help="Table with the columns that were fitted to.")],
    out: Annotated[Path, typer.Option(help="Write the predictions to this CSV file.")],
    sep: Sep = None,
    decimal: Decimal = ".",
    thousands: Thousands = None,
    dayfirst: DayFirst = None,
    encoding: Encoding = "utf-8",
    sheet: Sheet = None,
    device: Device = "cpu",
) -> None:
    """Predict every row of a table: mean, standard deviation and 95 % interval, in the unit of the target.

    Where the table has the target too, the error is printed. Columns that the model does not use stay as they are.
    """
    from gp_rangeformer.lab.compare.result import write_text
    from gp_rangeformer.regression import SavedModelError, TableError, TableRegression
    from gp_rangeformer.regression.predictions import beside, target_title

    check_device(device)
    check_output("--out", out, data)
    try:
        options = table_options(
            sep, decimal=decimal, thousands=thousands, dayfirst=dayfirst, encoding=encoding, sheet=sheet
        )
        with saying_warnings():
            kept = TableRegression.load(model, device=device)
            used = (*(column.name for column in kept.columns.inputs), kept.target, target_title(kept.target))
            frame = options.read(data, kept.columns.texts, used)
    except (TableError, SavedModelError, ImportError) as error:
        refuse(error)
    try:
        with show_progress() as show, saying_warnings():
            show("prediction", 0, len(frame), "solving for the targets")
            found = kept.predict(frame, lambda done, total: show("prediction", done, total, "rows"))
    except TableError as error:
        refuse(f"{data.name}, {error}")
    except KeyboardInterrupt:
        open_console(stderr=True).print("Interrupted; nothing was written.", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    except (ArithmeticError, RuntimeError) as error:
        open_console(stderr=True).print(f"Prediction failed: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    with saying_warnings():
        summary = _summary(kept, frame, found, data.name)
    open_console().print(summary, markup=False, soft_wrap=True)
    outputs = Outputs()
    text = beside(found, frame, kept.target).to_csv(lineterminator="\n")
    outputs.write(out, partial(write_text, out, text))
    outputs.say_written()
    outputs.finish()


def _summary(model: TableRegression, frame: pd.DataFrame, found: pd.DataFrame, name: str) -> str:
    """How many rows, and how far off they are where the table says what was to be predicted. Of a target that cannot be
    read like that of a fit there is no error: rows that can be would be others than were asked about."""
    import numpy as np

    from gp_rangeformer.regression import TableError, TableWarning
    from gp_rangeformer.regression.errors import counted
    from gp_rangeformer.regression.kinds import as_numbers, column_of
    from gp_rangeformer.regression.predictions import target_title

    rows = int(np.count_nonzero(found["mean"].notna()))
    fitted = f"{model.target} by {model.kernel} fitted to {counted(len(model.gp.train_targets), 'row')}"
    text = f"{counted(rows, 'row')} predicted, {fitted}"
    # The first: a table of predictions has those under the name of a target "mean".
    target = next((one for one in (target_title(model.target), model.target) if one in frame.columns), None)
    if target is None:
        return text
    try:
        observed = as_numbers(column_of(frame, target), "number")
    except TableError as error:
        warnings.warn(f"there is no RMSE: {name}, {error}", TableWarning, stacklevel=2)
        return text
    mean, low, high = (np.asarray(found[name], dtype=float) for name in ("mean", "lower95", "upper95"))
    error = mean - observed
    known = ~np.isnan(error)
    if not known.any():
        return text
    rmse = float(np.sqrt(np.mean(np.square(error[known]))))
    share = float(np.mean((low <= observed)[known] & (observed <= high)[known]))
    return f"{text}; RMSE {rmse:.5g}, {share:.1%} inside their 95 % intervals ({counted(int(known.sum()), 'row')})"
