"""A comma-separated table of the user's own: read exactly, or refused with cause and remedy."""

from __future__ import annotations

import csv
import gzip
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from gp_rangeformer.lab.datasets.dataset import Dataset, DatasetError, check_sizes, choose, closest, standardise

_MISSING = frozenset({"", "na", "nan", "null", "?"})


def load_csv(
    path: str | Path, target: str, *, n: int | None = None, n_test: int | None = None, seed: int = 0
) -> Dataset:
    """A comma-separated table (plain or gzip, UTF-8) with a header line, split 90/10 at random and standardised.

    Every column but `target` is a feature and must hold decimal numbers. Rows with a missing value (an empty cell, NA,
    NaN, null or ?) are dropped, with a warning and a count in `Dataset.source`.

    Args:
        path: the file.
        target: the header of the column to predict.
        n: training rows, a random subset of the 90 %. None: all of them.
        n_test: at most this many test rows, out of the 10 %. None: all of them.
        seed: of the split and the subsets.

    Raises:
        DatasetError: the file is missing, empty or damaged; its header is missing, lacks the target or has duplicate or
            empty names; a row has the wrong length; a cell holds text or an infinite value; the target is constant;
            fewer than 10 rows are complete; n exceeds the rows there are.
    """
    path = Path(path)
    check_sizes(n, n_test)
    header, rows, dropped = _read_table(path, target)
    data = torch.tensor(rows, dtype=torch.float64)
    at = header.index(target)
    x, y = torch.cat([data[:, :at], data[:, at + 1 :]], dim=1), data[:, at]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    held_out = max(1, round(0.1 * len(y)))
    # In the file's order, so that the whole training half does not depend on how it was drawn.
    test, train = order[:held_out].sort().values, order[held_out:].sort().values
    test, train = choose(path.name, test, train, n_test, n, generator)
    return standardise(
        path.name,
        (x[train], y[train]),
        (x[test], y[test]),
        tuple(name for name in header if name != target),
        target,
        f"{path.name}, random 90/10 split, seed {seed}, {dropped} of {len(y) + dropped} rows dropped: missing values",
    )


def _read_table(path: Path, target: str) -> tuple[list[str], list[list[float]], int]:
    """Header, complete rows (all columns, in the file's order) and the number of rows dropped."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if zipped else open)(path, "rt", newline="", encoding="utf-8-sig") as lines:
            return _parse_table(path.name, lines, target)
    except FileNotFoundError as error:
        raise DatasetError(f"no file {path}: check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path.name} is not UTF-8 text ({error}): save it as UTF-8 CSV") from error
    except csv.Error as error:
        raise DatasetError(f"{path.name} is not well-formed CSV ({error}): check quotes and line ends") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"cannot read {path} ({error}): check the file, or fetch it again") from error


def _parse_table(name: str, lines: Iterable[str], target: str) -> tuple[list[str], list[list[float]], int]:
    # strict: an unclosed quote would otherwise swallow the rest of the file as one cell.
    reader = csv.reader(lines, skipinitialspace=True, strict=True)
    stripped = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
    filled = ((line, cells) for line, cells in stripped if cells not in ([], [""]))
    _, header = next(filled, (0, []))
    _check_header(name, header, target)
    complete: list[list[float]] = []
    missing: Counter[str] = Counter()
    dropped = 0
    for line, cells in filled:
        if len(cells) != len(header):
            raise DatasetError(
                f"{name}, line {line}: {len(cells)} cells under {len(header)} columns: correct the row, and quote "
                "cells that contain commas"
            )
        row = [_number(name, line, column, cell) for column, cell in zip(header, cells, strict=True)]
        gaps = [column for column, value in zip(header, row, strict=True) if math.isnan(value)]
        missing.update(gaps)
        if gaps:
            dropped += 1
        else:
            complete.append(row)
    worst = f"; most are missing in column {missing.most_common(1)[0][0]!r}" if missing else ""
    if len(complete) < 10:
        raise DatasetError(
            f"{name}: {len(complete)} complete rows, {dropped} with missing values{worst}; at least 10 complete rows "
            "are needed: add rows, or drop the columns that have gaps"
        )
    if dropped:
        total = dropped + len(complete)
        warnings.warn(f"{name}: dropped {dropped} of {total} rows with missing values{worst}", stacklevel=4)
    return header, complete, dropped


def _check_header(name: str, header: list[str], target: str) -> None:
    if not header:
        raise DatasetError(f"{name} is empty: it needs a header line and at least 10 rows")
    if all(_as_float(column) is not None for column in header):
        raise DatasetError(f"{name} has no header: its first line holds only numbers; put column names above it")
    twice = [column for column, count in Counter(header).items() if count > 1]
    if "" in header:
        raise DatasetError(f"{name}: column {header.index('') + 1} has no name: name it, or drop it (a row index?)")
    if twice:
        raise DatasetError(f"{name}: column name {twice[0]!r} occurs more than once: rename or drop the duplicates")
    if target not in header:
        separator = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
        hint = f"; the separator looks like {separator!r}: save the table with commas" if separator else ""
        raise DatasetError(
            f"{name} has no column {target!r}{closest(target, header)}; its columns: {', '.join(header)}{hint}"
        )
    if len(header) == 1:
        raise DatasetError(f"{name} has only the target column {target!r}: add at least one feature column")


def _number(name: str, line: int, column: str, cell: str) -> float:
    """The cell's value, NaN where it is missing."""
    if cell.lower() in _MISSING:
        return math.nan
    value = _as_float(cell)
    if value is None:
        raise DatasetError(
            f"{name}, line {line}: column {column!r} holds text, {cell!r}: drop the column or encode it as numbers"
        )
    if math.isinf(value):
        raise DatasetError(f"{name}, line {line}: column {column!r} is infinite, {cell!r}: correct or remove the row")
    return value


def _as_float(cell: str) -> float | None:
    # float() also reads "1_000" and non-ASCII digits; in a table these are more likely text.
    if "_" in cell or not cell.isascii():
        return None
    try:
        return float(cell)
    except ValueError:
        return None
