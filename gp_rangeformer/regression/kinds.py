"""What a column of a table holds, and its cells as numbers or texts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gp_rangeformer.regression.errors import TableError, argument, import_pandas
from gp_rangeformer.regression.notations import Cause, Notation, cause

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "boolean", "date", "text"]
KINDS: tuple[Kind, ...] = ("number", "boolean", "date", "text")
MOST_CATEGORIES = 20  # of a text column, an input each
_DAY = np.timedelta64(1, "D") / np.timedelta64(1, "us")
_INFERRED: dict[str, Kind] = {
    **dict.fromkeys(("integer", "floating", "mixed-integer-float", "decimal"), "number"),
    "boolean": "boolean",
    **dict.fromkeys(("datetime64", "datetime", "date"), "date"),
    "string": "text",
}

_WRITTEN: dict[Kind, str] = {
    "number": "write a number, or leave the row out",
    "boolean": "write true or false, or leave the row out",
    "date": "write a date like 2024-01-31, or leave the row out",
    "text": "write a text, or leave the row out",
}


def place(frame: pd.DataFrame | pd.Series, at: int) -> str:
    """The row by its label: ``line 6`` of a file, ``row 6`` of another table."""
    return f"{frame.index.name or 'row'} {frame.index[at]}"


def check_frame(frame: object) -> None:
    """:raises TableError: it is none of pandas'."""
    if not isinstance(frame, import_pandas().DataFrame):
        raise TableError(f"a table is a pandas.DataFrame, not a {type(frame).__name__}: convert it, with column names")


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column; names are known to be of one each."""
    found: Any = frame[name]
    return found


def shown(column: pd.Series, at: int) -> str:
    """A cell for a message: without numpy's name of its type, and dates as people write them."""
    cell: Any = column.iloc[at]
    if isinstance(cell, date):
        return str(cell).removesuffix(" 00:00:00")
    return repr(cell.item() if isinstance(cell, np.generic) else cell)


def first_text(column: pd.Series, otherwise: str, kind: Kind = "number") -> Cause:
    """Where a column holds text, and why: most of it is numbers or dates in another notation, or ``otherwise``.

    :param kind: what belongs there; texts that look like it are not what is wrong.
    """
    cells = list(column)
    texts = [at for at, cell in enumerate(cells) if isinstance(cell, str)]
    other = [at for at in texts if not _looks_like(cells[at].strip(), kind)]
    (at, *_) = (*other, *texts, int(column.notna().to_numpy().argmax()))
    return cause(cells) or Cause(at, otherwise)


def _looks_like(cell: str, kind: Kind) -> bool:
    if kind == "boolean":
        return cell.lower() in ("true", "false")
    return (Notation().date(cell) if kind == "date" else Notation().number(cell)) is not None


def may_be_codes(column: pd.Series) -> bool:
    """Whether most of its cells are whole numbers and the others texts, as 1, 2 and A, and no more than become inputs.

    A code is not met once only: numbers that differ in most rows are numbers, and a text among them is a slip.
    """
    if column.dtype != object:
        return False
    cells = column.dropna().tolist()
    texts = sum(isinstance(cell, str) for cell in cells)
    whole = sum(isinstance(cell, Real) and not isinstance(cell, bool) and cell == cell // 1 for cell in cells)
    different = len(set(map(str, cells)))
    return texts + whole == len(cells) and 0 < texts < whole and different <= min(MOST_CATEGORIES, len(cells) // 2)


def kind_of(column: pd.Series, remedy: str | None = None) -> Kind | None:
    """None where every cell is missing.

    :param remedy: what is asked for in an error, where the column cannot be dropped.
    :raises TableError: cells of several kinds, or of one that no number stands for.
    """
    pd = import_pandas()
    if not bool(column.notna().any()):
        return None
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "text"
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    kind = _INFERRED.get(inferred)
    if kind is not None:
        return kind
    if inferred.startswith("mixed") and any(isinstance(cell, str) for cell in column):
        otherwise = "drop the column or encode it as numbers, with empty cells for missing ones"
        if may_be_codes(column):
            otherwise += f"; if they are codes, {argument('encode', 'one-hot')}"
        at, why = first_text(column, remedy or otherwise)
        raise TableError(f"{place(column, at)}: column {column.name!r} holds text, {shown(column, at)}: {why}")
    raise TableError(
        f"column {column.name!r} holds values of kind {inferred} ({column.dtype}): numbers, true and false, dates and "
        f"text can be used; {remedy or 'convert or drop it'}"
    )


def is_zoned(dates: pd.Series) -> bool | None:
    """Whether they have a time zone; None where all are missing.

    :raises TableError: some have one, some have none.
    """
    if dates.dtype != object:
        return dates.dt.tz is not None if bool(dates.notna().any()) else None
    known = ((at, cell) for at, cell in enumerate(dates) if not import_pandas().isna(cell))
    first: dict[bool, int] = {}
    for at, cell in known:
        first.setdefault(getattr(cell, "tzinfo", None) is not None, at)
    if len(first) == 2:
        raise TableError(mixed_zones(dates, first[True], first[False]))
    return next(iter(first), None)


def mixed_zones(dates: pd.Series, zoned: int, naive: int) -> str:
    """What is said of a column of which these cells have a time zone and none."""
    return (
        f"{place(dates, naive)}: column {dates.name!r} holds {shown(dates, naive)}, without a time zone, and "
        f"{place(dates, zoned)} {shown(dates, zoned)}, with one: give all dates a zone, or none"
    )


def as_numbers(column: pd.Series, kind: Kind, zoned: bool | None = None) -> np.ndarray:
    """float64, NaN where missing: false and true are 0 and 1, dates days since 1970, in UTC where they have a time zone
    and as their clock shows them where they have none.

    :param zoned: whether dates are to have a zone; None: either.
    :raises TableError: a cell is not of this kind, or infinite; dates with and without a zone.
    """
    pd = import_pandas()
    found = kind_of(column, _WRITTEN[kind])
    # A table of a few rows may have 0 and 1 for false and true, and a number no decimals.
    allowed = {kind, "number", "boolean"} if kind in ("number", "boolean") else {kind}
    if found is not None and found not in allowed:
        at = int(np.flatnonzero(column.notna().to_numpy())[0])
        said = f"a {found}, where a {kind} belongs"
        at, why = first_text(column, _WRITTEN[kind], kind) if found == "text" else (at, _WRITTEN[kind])
        raise TableError(f"{place(column, at)}: column {column.name!r} holds {shown(column, at)}, {said}: {why}")
    if found is None:
        return np.full(len(column), np.nan)
    if kind == "date":
        has_zone = is_zoned(column)
        if zoned is not None and has_zone is not None and has_zone != zoned:
            at = int(np.flatnonzero(column.notna().to_numpy())[0])
            one, other = ("with", "without") if has_zone else ("without", "with")
            raise TableError(
                f"{place(column, at)}: column {column.name!r} holds {shown(column, at)}, a date {one} a time zone, and "
                f"the training rows have dates {other} one: write them alike"
            )
        when = pd.to_datetime(column, utc=True).dt.as_unit("us")
        values = when.astype("int64").to_numpy().astype(np.float64) / _DAY
        return np.where(column.isna().to_numpy(), np.nan, values)
    values = pd.to_numeric(column.astype(object)).to_numpy(dtype=np.float64, na_value=np.nan)
    _refuse(column, np.isinf(values), "is infinite, {cell}: correct or remove the row")
    if kind == "boolean":
        outside = ~np.isnan(values) & (values != 0) & (values != 1)
        _refuse(column, outside, "holds {cell}, where true or false belongs")
    return values


def as_dates(days: np.ndarray, zoned: bool) -> pd.Series:
    """The inverse of :func:`as_numbers`, to a microsecond; those with a zone in UTC."""
    dates = import_pandas().Series(np.round(days * _DAY).astype("int64").astype("datetime64[us]"))
    return dates.dt.tz_localize("UTC") if zoned else dates


def as_texts(column: pd.Series) -> list[str | None]:
    """None where missing."""
    return [None if gone else str(cell) for cell, gone in zip(column, column.isna(), strict=True)]


def refuse_missing(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """:raises TableError: a cell of these columns is missing."""
    for name in names:
        column = column_of(frame, name)
        remedy = f"{argument('missing', 'drop')} leaves such rows out, {argument('missing', 'mean')} fills them in"
        _refuse(column, column.isna().to_numpy(), f"is missing: {remedy}")


def _refuse(column: pd.Series, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        said = what.format(cell=shown(column, at))
        raise TableError(f"{place(column, at)}: column {column.name!r} {said}")
