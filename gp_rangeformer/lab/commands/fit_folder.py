"""The folder that ``gp-rangeformer fit --out`` keeps a model in: what is there before the fit, and what it leaves."""

from __future__ import annotations

import contextlib
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gp_rangeformer.lab.commands.console import refuse, show_status
from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    import pandas as pd

    from gp_rangeformer.lab.compare.fit import Fit
    from gp_rangeformer.lab.datasets import Split, TableOptions
    from gp_rangeformer.regression import TableRegression
    from gp_rangeformer.regression.columns import Columns

_NAMED = 8  # columns of a model, at most, in a message


def prepare(context: typer.Context, folder: Path) -> None:
    """Make it: files may be asked for in it. A command that leaves nothing there removes it again."""
    from gp_rangeformer.atomic import WriteError
    from gp_rangeformer.regression.files import prepared_folder

    try:
        if not folder.exists():
            context.call_on_close(partial(_remove_empty, folder))
        prepared_folder(folder)
    except WriteError as error:
        refuse(f"--out {folder}: {error}")


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it was never made, or has files
        folder.rmdir()


def check_former(folder: Path, split: Split, options: TableOptions, replace: bool) -> None:
    """A model that is there is replaced, which is said, and one of another target or other columns only if asked for.

    What cannot be read, or cannot be fitted, is left to those who say why.
    """
    from gp_rangeformer.regression import SavedModelError, TableError, TableWarning
    from gp_rangeformer.regression.columns import Columns, learned
    from gp_rangeformer.regression.files import read_model
    from gp_rangeformer.regression.rows import usable

    try:
        content = read_model(folder)[1]
        former = content["target"], _names(Columns.from_json(content["columns"]))
        frame = usable(split.train, split.target, encode=options.encode, missing=options.missing).frame
        wanted = split.target, _names(learned(frame, split.target, options.missing)[0])
    except (SavedModelError, TableError, OSError, ValueError, KeyError, TypeError):
        return
    if former != wanted and not replace:
        refuse(
            f"{folder} holds a model of {_described(*former, wanted[1])}, and this one would be of "
            f"{_described(*wanted, former[1])}: choose another --out, or --replace"
        )
    warnings.warn(f"replaces the model of {content['rows']} rows in {folder}", TableWarning, stacklevel=2)


def _names(columns: Columns) -> set[str]:
    return {column.name for column in columns.inputs}


def _described(target: str, columns: set[str], others: set[str]) -> str:
    """Target and columns, first those that the others lack."""
    names = [*sorted(columns - others), *sorted(columns & others)]
    left = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{target!r} given {', '.join(map(repr, names[:_NAMED]))}{left}"


def keep(fitted: Fit, folder: Path, outputs: Outputs, numbers: dict[str, object]) -> bool:
    """The model, its held-out rows and its numbers. Where the model cannot be written the former one is still there,
    with what belongs to it: nothing else is written then."""
    from gp_rangeformer.regression.files import HELD_OUT, NUMBERS, written_together

    assert fitted.model is not None
    if not outputs.write(folder, partial(fitted.model.save, folder)):
        return False
    if fitted.predictions is not None:
        outputs.write(folder / HELD_OUT, partial(fitted.write_predictions, folder / HELD_OUT))
    outputs.write_json(folder / NUMBERS, numbers | written_together(folder))
    return True


def keep_report(fitted: Fit, folder: Path, outputs: Outputs) -> None:
    """The page, beside the model that :func:`keep` wrote."""
    from gp_rangeformer.regression.files import REPORT

    if fitted.model is not None and fitted.predictions is not None:
        outputs.write(folder / REPORT, partial(_write_report, fitted.model, folder / REPORT, fitted.predictions))


def _write_report(model: TableRegression, path: Path, held_out: pd.DataFrame) -> None:
    """A page that cannot be made must not cost what was computed before."""
    from gp_rangeformer.lab.model_report import write_report

    try:
        with show_status() as say:
            say("writing the report")
            write_report(model, path, held_out)
    except (ArithmeticError, RuntimeError) as error:
        raise OSError(f"{path} was not written: {error}") from error


def last_kept(folder: Path | None) -> int | None:
    """When a fit last kept its parameters in the folder: a time, or None where nothing is there."""
    from gp_rangeformer.regression.files import UNFINISHED, is_unfinished

    return (folder / UNFINISHED).stat().st_mtime_ns if folder is not None and is_unfinished(folder) else None


def interrupted(folder: Path | None, before: int | None) -> str:
    """:param before: what :func:`last_kept` said when the fit began."""
    from gp_rangeformer.regression.files import UNFINISHED

    kept = last_kept(folder)
    if folder is None or kept is None:
        return "Interrupted; nothing was written."
    if kept == before:
        return f"Interrupted; nothing was written: {folder / UNFINISHED} is what an earlier fit has left."
    return f"Interrupted; the best parameters so far are in {folder / UNFINISHED}: the same command goes on from them."
