"""The folder that ``gp-rangeformer fit --out`` keeps a model in: what is there before the fit, and what it leaves."""

from __future__ import annotations

import contextlib
import warnings
from functools import partial
from itertools import count
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
    """A model that is there is replaced, which is said, and one of another target or other columns, or that cannot be
    read, only if asked for.

    What cannot be fitted is left to those who say why.
    """
    from gp_rangeformer.regression import SavedModelError, TableError, TableWarning
    from gp_rangeformer.regression.columns import Columns, learned
    from gp_rangeformer.regression.files import holds_model, read_model
    from gp_rangeformer.regression.rows import usable

    if not holds_model(folder):
        return
    try:
        content = read_model(folder)[1]
        former = content["target"], _names(Columns.from_json(content["columns"]))
        described = f"the model of {content['rows']} rows in {folder}"
    except (SavedModelError, OSError, ValueError, KeyError, TypeError) as error:
        if not replace:
            remedy = "choose another --out, or --replace"
            refuse(f"{folder} holds a model that cannot be read, and would be replaced: {remedy}. {error}")
        former, described = None, f"the model in {folder}, which cannot be read"
    try:
        frame = usable(split.train, split.target, encode=options.encode, missing=options.missing).frame
        wanted = split.target, _names(learned(frame, split.target, options.missing)[0])
    except TableError:
        return
    if former is not None and former != wanted and not replace:
        refuse(
            f"{folder} holds a model of {_described(*former, wanted[1])}, and this one would be of "
            f"{_described(*wanted, former[1])}: choose another --out, or --replace"
        )
    warnings.warn(f"will replace {described}", TableWarning, stacklevel=2)


def _names(columns: Columns) -> set[str]:
    return {column.name for column in columns.inputs}


def _described(target: str, columns: set[str], others: set[str]) -> str:
    """Target and columns, first those that the others lack."""
    names = [*sorted(columns - others), *sorted(columns & others)]
    left = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{target!r} given {', '.join(map(repr, names[:_NAMED]))}{left}"


def description(folder: Path | None) -> bytes | None:
    """Of the model that is there, which no other has; None where there is none."""
    from gp_rangeformer.regression.files import DESCRIPTION

    try:
        return None if folder is None else (folder / DESCRIPTION).read_bytes()
    except OSError:
        return None


def keep(fitted: Fit, folder: Path, before: bytes | None, outputs: Outputs, numbers: dict[str, object]) -> Path | None:
    """The model, its held-out rows and its numbers, and where they are. Where the model cannot be written the former
    one is still there, with what belongs to it: nothing else is written then.

    :param before: the :func:`description` when the fit began. Where another fit has kept its model since, this one's
        goes to a folder beside it.
    """
    from gp_rangeformer.regression import TableWarning
    from gp_rangeformer.regression.files import HELD_OUT, NUMBERS, written_together

    assert fitted.model is not None
    if description(folder) not in (None, before):
        taken, folder = folder, _new_beside(folder)
        said = (
            f"another fit has kept its model in {taken} while this one ran: that stays, and this model is in {folder}"
        )
        warnings.warn(said, TableWarning, stacklevel=2)
    if not outputs.write(folder, partial(fitted.model.save, folder)):
        return None
    if fitted.predictions is not None:
        outputs.write(folder / HELD_OUT, partial(fitted.write_predictions, folder / HELD_OUT))
    outputs.write_json(folder / NUMBERS, numbers | written_together(folder))
    return folder


def _new_beside(folder: Path) -> Path:
    """The first of NAME-1, NAME-2, ... that is not there, made; if it cannot be, writing to it says why."""
    whole = folder.resolve()
    folder = folder if folder.name == whole.name else whole
    for beside in (folder.with_name(f"{folder.name}-{number}") for number in count(1)):
        try:
            beside.mkdir()
        except FileExistsError:
            continue
        except OSError:
            return beside
        return beside
    raise AssertionError("numbers do not end")


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


def last_kept(folder: Path | None) -> dict[Path, int]:
    """When fits last kept their parameters in the folder: a time for each file of such."""
    from gp_rangeformer.regression.files import unfinished_files

    return {} if folder is None else {path: path.stat().st_mtime_ns for path in unfinished_files(folder)}


def interrupted(folder: Path | None, before: dict[Path, int]) -> str:
    """:param before: what :func:`last_kept` said when the fit began."""
    kept = last_kept(folder)
    if not kept:
        return "Interrupted; nothing was written."
    changed = [path for path, time in kept.items() if before.get(path) != time]
    if not changed:
        return f"Interrupted; nothing was written: {next(iter(kept))} is what an earlier fit has left."
    named = " or, of another fit, ".join(map(str, changed))
    return f"Interrupted; the best parameters so far are in {named}: the same command goes on from them."
