"""What a column of a table holds, and its cells as numbers or texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gp_rangeformer.regression.errors import TableError, import_pandas

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "boolean", "date", "text"]
KINDS: tuple[Kind, ...] = ("number", "boolean", "date", "text")
_DAY = np.timedelta64(1, "D") / np.timedelta64(1, "us")
_INFERRED: dict[str, Kind] = {
    **dict.fromkeys(("integer", "floating", "mixed-integer-float", "decimal"), "number"),
    "boolean": "boolean",
    **dict.fromkeys(("datetime64", "datetime", "date"), "date"),
    "string": "text",
}


def place(frame: pd.DataFrame | pd.Series, at: int) -> str:
    """The row by its label: ``line 6`` of a file, ``row 6`` of another table."""
    return f"{frame.index.name or 'row'} {frame.index[at]}"


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column; names are known to be of one each."""
    found: Any = frame[name]
    return found


def shown(column: pd.Series, at: int) -> str:
    """A cell for a message: without numpy's name of its type."""
    cell: Any = column.iloc[at]
    return repr(cell.item() if isinstance(cell, np.generic) else cell)


def kind_of(column: pd.Series) -> Kind | None:
    """None where every cell is missing.

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
    at = _first(column, lambda cell: isinstance(cell, str))
    if inferred.startswith("mixed") and at is not None:
        raise TableError(
            f"{place(column, at)}: column {column.name!r} holds text, {shown(column, at)}: drop the column or encode "
            "it as numbers; other cells of it are numbers already"
        )
    raise TableError(
        f"column {column.name!r} holds values of kind {inferred} ({column.dtype}): numbers, true and false, dates and "
        "text can be used; convert or drop it"
    )


def as_numbers(column: pd.Series, kind: Kind) -> np.ndarray:
    """float64, NaN where missing: dates are days since 1970 (UTC), false and true are 0 and 1.

    :raises TableError: a cell is not of this kind, or infinite.
    """
    pd = import_pandas()
    found = kind_of(column)
    # A table of a few rows may have 0 and 1 for false and true, and a number no decimals.
    allowed = {kind, "number", "boolean"} if kind in ("number", "boolean") else {kind}
    if found is not None and found not in allowed:
        at = int(np.flatnonzero(column.notna().to_numpy())[0])
        raise TableError(
            f"{place(column, at)}: column {column.name!r} holds {shown(column, at)}, a {found}, where a {kind} belongs"
        )
    if found is None:
        return np.full(len(column), np.nan)
    if kind == "date":
        when = pd.to_datetime(column, utc=True).dt.as_unit("us")
        values = when.astype("int64").to_numpy().astype(np.float64) / _DAY
        return np.where(column.isna().to_numpy(), np.nan, values)
    values = pd.to_numeric(column.astype(object)).to_numpy(dtype=np.float64, na_value=np.nan)
    _refuse(column, np.isinf(values), "is infinite, {cell}: correct or remove the row")
    if kind == "boolean":
        outside = ~np.isnan(values) & (values != 0) & (values != 1)
        _refuse(column, outside, "holds {cell}, where true or false belongs")
    return values


def as_dates(days: np.ndarray) -> pd.Series:
    """The inverse of :func:`as_numbers`, to a microsecond."""
    pd = import_pandas()
    return pd.Series(np.round(days * _DAY).astype("int64").astype("datetime64[us]")).dt.tz_localize("UTC")


def as_texts(column: pd.Series) -> list[str | None]:
    """None where missing."""
    return [None if gone else str(cell) for cell, gone in zip(column, column.isna(), strict=True)]


def refuse_missing(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """:raises TableError: a cell of these columns is missing."""
    for name in names:
        column = column_of(frame, name)
        _refuse(column, column.isna().to_numpy(), "is missing: fill it in, or say what becomes of such rows")


def _refuse(column: pd.Series, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        said = what.format(cell=shown(column, at))
        raise TableError(f"{place(column, at)}: column {column.name!r} {said}")


def _first(column: pd.Series, holds: object) -> int | None:
    return next((at for at, cell in enumerate(column) if holds(cell)), None)  # type: ignore[operator]
