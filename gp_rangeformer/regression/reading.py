"""Files to tables: read exactly, or refused with file, line and remedy.

Text is split by Python's csv module: pandas pads short rows without a word, and knows no line numbers.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gp_rangeformer.regression.errors import INSTALL, TableError, import_pandas

if TYPE_CHECKING:
    import pandas as pd

MISSING = frozenset({"", "na", "n/a", "nan", "-nan", "null", "?"})
_SEPARATORS = (",", ";", "\t", "|")
_EXCEL, _PARQUET = (".xlsx", ".xlsm"), (".parquet", ".pq")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?")
_ZONE = re.compile(r":\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)$")


def read_table(path: str | Path, sep: str | None = None, text: Sequence[str] = ()) -> pd.DataFrame:
    """A table with a header line: CSV, TSV and the like (UTF-8, plain or gzip), the first sheet of an Excel file, or
    Parquet.

    Cells of text files are numbers (1.5, 4e-3), true and false, dates (2024-01-31, 2024-01-31 12:00), missing (empty,
    NA, N/A, NaN, null, ?) or text; a column is of numbers, of booleans or of dates if all of its cells are, and else
    of text. The index is named ``line``, the line of the file that a row ends in, or ``row`` (of Excel: as it shows
    them, of Parquet: counted from 1).

    :param sep: what stands between cells of a text file; None: a comma, semicolon, tab or bar, whichever the header
        has most of.
    :param text: columns whose cells stay as they are written, as in codes that look like numbers.
    :raises TableError: the file is missing, empty or damaged, a row has too many or too few cells, a column has no name
        or the name of another.
    :raises ImportError: pandas, or what it needs for this kind of file, is not installed.
    """
    path = Path(path)
    if sep is not None and len(sep) != 1:
        raise TableError(f"separator {sep!r} is not one character")
    if path.suffix.lower() in (*_EXCEL, *_PARQUET):
        if sep is not None:
            raise TableError(f"{path.name} is no text file: a separator says nothing of it")
        return _read_binary(path)
    import_pandas()
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if zipped else open)(path, "rt", newline="", encoding="utf-8-sig") as lines:
            header, numbers, rows = _split(path.name, lines, sep)
    except FileNotFoundError as error:
        raise TableError(f"no file {path}: check the path") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path.name} is not UTF-8 text ({error}): save it as UTF-8 CSV") from error
    except csv.Error as error:
        raise TableError(f"{path.name} is not well-formed CSV ({error}): check quotes and line ends") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(f"cannot read {path} ({error}): check the file, or fetch it again") from error
    return _frame(path.name, header, numbers, rows, text)


def _split(name: str, lines: Iterable[str], sep: str | None) -> tuple[list[str], list[int], list[list[str]]]:
    """Header, the line that each row ends in, and the rows, all as long as the header."""
    whole = list(lines)
    first = next((line for line in whole if line.strip()), "")
    # strict: an unclosed quote would otherwise swallow the rest of the file as one cell.
    delimiter = sep or max(_SEPARATORS, key=first.count)
    reader = csv.reader(whole, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
    stripped = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
    # An empty line; of a table with one column that would be a missing cell, but such a table has no inputs.
    filled = ((line, cells) for line, cells in stripped if cells not in ([], [""]))
    _, header = next(filled, (0, []))
    _check_header(name, header)
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


def _check_header(name: str, header: list[str]) -> None:
    if not header:
        raise TableError(f"{name} is empty: it needs a header line and at least 10 rows")
    if all(_number(column) is not None for column in header):
        raise TableError(f"{name} has no header: its first line holds only numbers; put column names above it")
    twice = [column for column, count in Counter(header).items() if count > 1]
    if "" in header:
        raise TableError(f"{name}: column {header.index('') + 1} has no name: name it, or drop it (a row index?)")
    if twice:
        raise TableError(f"{name}: column name {twice[0]!r} occurs more than once: rename or drop the duplicates")


def _frame(name: str, header: list[str], lines: list[int], rows: list[list[str]], text: Sequence[str]) -> pd.DataFrame:
    pd = import_pandas()
    index = pd.Index(lines, name="line", dtype="int64")
    columns = {}
    for at, column in enumerate(header):
        cells = [row[at] for row in rows]
        values = [None if cell.lower() in MISSING else cell for cell in cells]
        columns[column] = pd.Series(
            values if column in text else _typed(name, column, values, lines), index=index, dtype=None
        )
    return pd.DataFrame(columns, index=index)


def _typed(name: str, column: str, cells: list[str | None], lines: list[int]) -> Any:
    """Numbers, booleans or dates where all cells are; text, and numbers among it, as they are."""
    pd = import_pandas()
    known = [cell for cell in cells if cell is not None]
    numbers = [math.nan if cell is None else _number(cell) for cell in cells]
    if None not in numbers:
        return numbers
    if all(cell.lower() in ("true", "false") for cell in known):
        return pd.array([None if cell is None else cell.lower() == "true" for cell in cells], dtype="boolean")
    if all(_DATE.fullmatch(cell) for cell in known):
        # Those without a zone stay without one, as whoever wrote them means them.
        zoned = any(_ZONE.search(cell) for cell in known)
        try:
            return pd.to_datetime(cells, format="ISO8601", utc=zoned)
        except ValueError as error:
            for line, cell in zip(lines, cells, strict=True):
                if cell is not None and pd.isna(pd.to_datetime(cell, format="ISO8601", utc=True, errors="coerce")):
                    raise TableError(f"{name}, line {line}: column {column!r}: there is no date {cell!r}") from error
            raise TableError(f"{name}: column {column!r}: {error}") from error
    if sum(number is not None for number in numbers) > len(cells) / 2:
        # Most are numbers: whoever needs the column names the cells that are not.
        return pd.array([c if n is None else n for c, n in zip(cells, numbers, strict=True)], dtype=object)
    return cells


def _number(cell: str) -> float | None:
    # float() also reads "1_000" and non-ASCII digits; in a table these are more likely text.
    if "_" in cell or not cell.isascii():
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _read_binary(path: Path) -> pd.DataFrame:
    pd = import_pandas()
    excel = path.suffix.lower() in _EXCEL
    try:
        if not excel:
            frame = pd.read_parquet(path)
            # An index that has a name is a column like the others.
            frame = frame.reset_index(drop=all(name is None for name in frame.index.names))
            frame.index = pd.RangeIndex(1, len(frame) + 1, name="row")
            return frame
        # Without its own header pandas renames duplicates.
        cells = pd.read_excel(path, header=None, na_values=["?"])
    except FileNotFoundError as error:
        raise TableError(f"no file {path}: check the path") from error
    except ImportError as error:
        raise ImportError(f"{path.name} needs {'openpyxl' if excel else 'pyarrow'} beside pandas: {INSTALL}") from error
    except Exception as error:  # of several libraries, each with its own
        kind = "an Excel file" if excel else "a Parquet file"
        raise TableError(f"cannot read {path} as {kind} ({error}): check the file, or fetch it again") from error
    header = ["" if pd.isna(cell) else str(cell).strip() for cell in (cells.iloc[0] if len(cells) else [])]
    _check_header(path.name, header)
    cells.index = pd.RangeIndex(1, len(cells) + 1, name="row")
    frame = cells.iloc[1:].set_axis(header, axis=1)
    return frame.dropna(how="all").infer_objects()
