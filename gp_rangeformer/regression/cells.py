"""The cells of a text or an Excel file, a column at a time, as what they say that they are."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any

from gp_rangeformer.regression.errors import TableError, TableWarning, argument, import_pandas
from gp_rangeformer.regression.kinds import mixed_zones, place
from gp_rangeformer.regression.notations import Notation, has_zone, thousands_by_points

if TYPE_CHECKING:
    import pandas as pd

MISSING = frozenset({"", "na", "n/a", "nan", "-nan", "null", "?", "<na>", "#n/a"})


def typed(name: str, column: pd.Series, notation: Notation, as_text: bool) -> pd.Series:
    """Numbers, booleans or dates where all cells are; text, and numbers among it, as they are.

    :param column: of texts, and of what is none (numbers of an Excel file, NaN).
    :param as_text: texts stay texts, whatever they look like.
    """
    pd = import_pandas()

    def of(values: Any) -> pd.Series:
        return pd.Series(values, index=column.index, name=column.name)

    cells = [cell.strip() if isinstance(cell, str) else cell for cell in column]
    cells = [None if _is_missing(cell) else cell for cell in cells]
    texts = [cell for cell in cells if isinstance(cell, str)]
    if not texts and any(cell is not None for cell in cells):
        return of(cells).infer_objects()
    if as_text:
        return of(pd.array(cells, dtype=object))
    numbers = [_as_number(cell, notation) for cell in cells]
    known = [cell for cell in cells if cell is not None]
    if all(number is not None for number, cell in zip(numbers, cells, strict=True) if cell is not None):
        if notation == Notation() and (at := thousands_by_points(cells)) is not None:
            _warn_of_thousands(name, column, at, str(cells[at]))
        return of([math.nan if number is None else number for number in numbers])
    if all(str(cell).lower() in ("true", "false") for cell in known):
        return of(pd.array([None if cell is None else str(cell).lower() == "true" for cell in cells], dtype="boolean"))
    if len(texts) == len(known) and all(notation.date(cell) is not None for cell in texts):
        return of(_dates(name, column, cells, notation))
    if 2 * sum(number is not None for number in numbers) > len(cells):
        # Most are numbers: whoever needs the column names the cells that are not.
        cells = [cell if number is None else number for cell, number in zip(cells, numbers, strict=True)]
    return of(pd.array(cells, dtype=object))


def _warn_of_thousands(name: str, column: pd.Series, at: int, cell: str) -> None:
    read = " ".join((argument("decimal", ","), argument("thousands", ".")))
    warnings.warn(
        f"{name}, {place(column, at)}: column {column.name!r} holds {cell} beside whole numbers, and is read as "
        f"{float(cell):g}: if {cell.replace('.', '')} is meant, read the table with {read}, or write no point",
        TableWarning,
        stacklevel=5,
    )


def _is_missing(cell: Any) -> bool:
    return cell.lower() in MISSING if isinstance(cell, str) else bool(import_pandas().isna(cell))


def _as_number(cell: Any, notation: Notation) -> float | None:
    if isinstance(cell, str):
        return notation.number(cell)
    return float(cell) if isinstance(cell, Real) and not isinstance(cell, bool) else None


def _dates(name: str, column: pd.Series, cells: list[str | None], notation: Notation) -> Any:
    """Those with a zone in UTC; those without stay without one, as whoever wrote them means them.

    :raises TableError: some have a zone and some have none; there is no such day.
    """
    pd = import_pandas()
    found = [None if cell is None else notation.date(cell) for cell in cells]
    zoned = {has_zone(date): at for at, date in reversed([*enumerate(found)]) if date is not None}
    if len(zoned) == 2:
        raise TableError(f"{name}, {mixed_zones(column, zoned[True], zoned[False])}")
    try:
        return pd.to_datetime(found, format="ISO8601", utc=True in zoned)
    except ValueError as error:
        for at, date in enumerate(found):
            if date is not None and pd.isna(pd.to_datetime(date, format="ISO8601", utc=True, errors="coerce")):
                raise TableError(
                    f"{name}, {place(column, at)}: column {column.name!r}: there is no date {cells[at]!r}"
                ) from error
        raise TableError(f"{name}: column {column.name!r}: {error}") from error


def untouched(column: pd.Series) -> pd.Series:
    """As the file has them; days without the midnight that pandas would write."""
    dates = column.infer_objects()
    return dates if dates.dtype.kind == "M" else column
