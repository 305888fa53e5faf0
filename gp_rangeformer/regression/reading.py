"""Files to tables: read exactly, or refused with file, line and remedy.

Text is split by Python's csv module: pandas pads short rows without a word, and knows no line numbers.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gp_rangeformer.regression.cells import typed, untouched
from gp_rangeformer.regression.errors import INSTALL, TableError, TableWarning, argument, import_pandas
from gp_rangeformer.regression.notations import Notation
from gp_rangeformer.regression.rows import UNNAMED, check_unique, closest

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = (",", ";", "\t", "|")
_EXCEL, _PARQUET = (".xlsx", ".xlsm"), (".parquet", ".pq")


def read_table(
    path: str | Path,
    sep: str | None = None,
    text: Sequence[str] = (),
    *,
    decimal: str = ".",
    thousands: str | None = None,
    dayfirst: bool | None = None,
    encoding: str = "utf-8",
    sheet: str | None = None,
    used: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A table with a header line: CSV, TSV and the like (plain or gzip), a sheet of an Excel file, or Parquet.

    Cells of text, in Excel files too, are numbers (1.5, 4e-3), true and false, dates (2024-01-31, 2024-01-31 12:00,
    2024/01/31), missing (empty, NA, N/A, NaN, null, ?) or text; a column is of numbers, of booleans or of dates if all
    of its cells are, and else of text. The index is named ``line``, the line of the file that a row ends in, or ``row``
    (of Excel: as it shows them, of Parquet: counted from 1). A column without a name is called as pandas does:
    ``Unnamed: 0`` is the first one.

    :param sep: what stands between cells of a text file; None: a comma, semicolon, tab or bar, whichever the header
        has most of.
    :param text: columns whose cells stay as they are written, as in codes that look like numbers.
    :param decimal: between whole and fraction, as pandas has it; ``","`` reads 1,5.
    :param thousands: between groups of three digits; ``"."`` reads 1.000 as a thousand. None: of columns with 6.370
        beside 997, whose points may be such, a :class:`~gp_rangeformer.regression.TableWarning` says so.
    :param dayfirst: True reads 31.1.2024 and 31/1/2024, False 1/31/2024; None: such dates are text.
    :param encoding: of a text file; those of Windows are often "cp1252".
    :param sheet: of an Excel file; None: the first one, and a :class:`~gp_rangeformer.regression.TableWarning` names
        the others.
    :param used: columns that are read so; the cells of others stay as the file has them, in text files also those that
        are missing. None: all.
    :raises TableError: the file is missing, empty or damaged, a row has too many or too few cells, a column has the
        name of another, one of dates has some with and some without a time zone.
    :raises ImportError: pandas, or what it needs for this kind of file, is not installed.
    """
    path, notation = Path(path), Notation(decimal, thousands, dayfirst)
    if sep is not None and len(sep) != 1:
        raise TableError(f"separator {sep!r} is not one character")
    kind = path.suffix.lower()
    if (sep is not None or encoding != "utf-8") and kind in (*_EXCEL, *_PARQUET):
        raise TableError(f"{path.name} is no text file: a separator or an encoding says nothing of it")
    if notation != Notation() and kind in _PARQUET:
        raise TableError(f"{path.name} is no text file: how numbers and dates are written says nothing of it")
    if sheet is not None and kind not in _EXCEL:
        raise TableError(f"{path.name} is no Excel file: it has no sheet {sheet!r}")
    if kind in _EXCEL:
        return _read_excel(path, sheet, notation, text, used)
    if kind in _PARQUET:
        return _read_parquet(path, used)
    import_pandas()
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        found = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding  # without a byte order mark
        with (gzip.open if zipped else open)(path, "rt", newline="", encoding=found) as lines:
            header, numbers, rows = _split(path.name, lines, sep)
    except FileNotFoundError as error:
        raise TableError(f"no file {path}: check the path") from error
    except UnicodeError as error:
        named = f"{argument('encoding', 'cp1252')}, {argument('encoding', 'utf-16')}"
        raise TableError(
            f"{path.name} is not {encoding.upper()} text ({error}): save it as UTF-8 CSV, .xlsx or .parquet, or name "
            f"its encoding ({named})"
        ) from error
    except LookupError as error:
        raise TableError(f"{argument('encoding', encoding)}: there is no such encoding") from error
    except csv.Error as error:
        raise TableError(f"{path.name} is not well-formed CSV ({error}): check quotes and line ends") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(f"cannot read {path} ({error}): check the file, or fetch it again") from error
    return _frame(path.name, header, numbers, rows, notation, text, used)


def _split(name: str, lines: Iterable[str], sep: str | None) -> tuple[list[str], list[int], list[list[str]]]:
    """Header, the line that each row ends in, and the rows, all as long as the header."""
    whole = list(lines)
    binary = next((number for number, line in enumerate(whole, 1) if "\0" in line), None)
    if binary is not None:
        raise TableError(
            f"{name}, line {binary} holds a zero byte: it is text of another encoding ({argument('encoding', 'utf-16')}"
            "), or no text file; of others .xlsx and .parquet are read"
        )
    first = next((line for line in whole if line.strip()), "")
    # strict: an unclosed quote would otherwise swallow the rest of the file as one cell.
    delimiter = sep or max(_SEPARATORS, key=first.count)
    reader = csv.reader(whole, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
    stripped = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
    # An empty line; of a table with one column that would be a missing cell, but such a table has no inputs.
    filled = ((line, cells) for line, cells in stripped if cells not in ([], [""]))
    _, header = next(filled, (0, []))
    header = _named(name, header)
    numbers, rows = [], []
    for line, cells in filled:
        if len(cells) != len(header):
            raise TableError(
                f"{name}, line {line}: {len(cells)} cells under {len(header)} columns: correct the row, and quote "
                f"cells that contain {delimiter!r}"
            )
        numbers.append(line)
        rows.append(cells)
    return header, numbers, rows


def _named(name: str, header: list[str]) -> list[str]:
    """With names for those that have none, as pandas makes them.

    :raises TableError: there is no header, or a name occurs twice.
    """
    if not any(header):
        raise TableError(f"{name} is empty: it needs a header line and rows below it")
    if all(Notation().number(column) is not None for column in header):
        raise TableError(f"{name} has no header: its first line holds only numbers; put column names above it")
    header = [column or f"{UNNAMED}{at}" for at, column in enumerate(header)]
    with _naming(name):
        check_unique(header)
    return header


def _frame(
    name: str,
    header: list[str],
    lines: list[int],
    rows: list[list[str]],
    notation: Notation,
    text: Sequence[str],
    used: Sequence[str] | None,
) -> pd.DataFrame:
    pd = import_pandas()
    index = pd.Index(lines, name="line", dtype="int64")
    columns = {}
    for at, column in enumerate(header):
        cells = pd.Series([row[at] for row in rows], index=index, name=column, dtype=object)
        columns[column] = typed(name, cells, notation, column in text) if _is_used(column, used) else cells
    return pd.DataFrame(columns, index=index)


def _is_used(column: str, used: Sequence[str] | None) -> bool:
    return used is None or column in used


def _read_parquet(path: Path, used: Sequence[str] | None) -> pd.DataFrame:
    pd = import_pandas()
    with _reading(path, "a Parquet file", "pyarrow"):
        import pyarrow.parquet

        with _naming(path.name):
            check_unique(pyarrow.parquet.read_schema(path).names)
        frame = pd.read_parquet(path)
        schema = pyarrow.parquet.read_schema(path)
        for name in schema.names:
            if name in frame.columns and not _is_used(name, used) and pyarrow.types.is_integer(schema.field(name).type):
                # Beside missing cells pandas makes floats of integers, which are exact to 2^53.
                column = pyarrow.parquet.read_table(path, columns=[name]).column(name)
                frame[name] = column.to_pandas(integer_object_nulls=True).array
        # An index that has a name is a column like the others.
        named = [name for name in frame.index.names if name is not None]
        with _naming(path.name):
            check_unique([*named, *frame.columns])
        frame = frame.reset_index(drop=not named)
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="row")
    return frame


def _read_excel(
    path: Path, sheet: str | None, notation: Notation, text: Sequence[str], used: Sequence[str] | None
) -> pd.DataFrame:
    pd = import_pandas()
    with _reading(path, "an Excel file", "openpyxl"), pd.ExcelFile(path) as book:
        names = [str(name) for name in book.sheet_names]
        if sheet is not None and sheet not in names:
            raise TableError(f"{path.name} has no sheet {sheet!r}{closest(sheet, names)}; sheets: {', '.join(names)}")
        # Without its own header pandas renames duplicates.
        cells = pd.read_excel(
            book, sheet_name=sheet or names[0], header=None, dtype=object, keep_default_na=False, na_values=[""]
        )
    if sheet is None and len(names) > 1:
        others = f"{', '.join(names[1:])} ({argument('sheet', names[1])})"
        warnings.warn(f"{path.name}: read the sheet {names[0]!r}; others: {others}", TableWarning, stacklevel=3)
    cells.index = pd.RangeIndex(1, len(cells) + 1, name="row")
    cells = cells.dropna(how="all").dropna(how="all", axis=1)
    header = ["" if pd.isna(cell) else str(cell).strip() for cell in (cells.iloc[0] if len(cells) else [])]
    header = _named(path.name, header)
    frame = cells.iloc[1:].set_axis(header, axis=1)
    return pd.DataFrame({
        name: typed(path.name, frame[name], notation, name in text) if _is_used(name, used) else untouched(frame[name])
        for name in header
    })  # fmt: skip


@contextlib.contextmanager
def _naming(file: str) -> Iterator[None]:
    try:
        yield
    except TableError as error:
        raise TableError(f"{file}: {error}") from error


@contextlib.contextmanager
def _reading(path: Path, kind: str, needs: str) -> Iterator[None]:
    """Errors of several libraries, each with its own, in one manner."""
    try:
        yield
    except TableError:
        raise
    except FileNotFoundError as error:
        raise TableError(f"no file {path}: check the path") from error
    except ImportError as error:
        raise ImportError(f"{path.name} needs {needs} beside pandas: {INSTALL}") from error
    except Exception as error:
        raise TableError(f"cannot read {path} as {kind} ({error}): check the file, or fetch it again") from error
