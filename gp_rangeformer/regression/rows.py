"""Which rows and columns of a table a model is fitted to."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gp_rangeformer.regression.errors import TableError, argument, counted
from gp_rangeformer.regression.kinds import (
    as_numbers,
    as_texts,
    check_frame,
    column_of,
    first_text,
    kind_of,
    may_be_codes,
    place,
    refuse_missing,
    shown,
)

if TYPE_CHECKING:
    import pandas as pd

Encode = Literal["refuse", "one-hot", "drop"]
Missing = Literal["drop", "mean", "refuse"]
ENCODE: tuple[Encode, ...] = ("refuse", "one-hot", "drop")
MISSING: tuple[Missing, ...] = ("drop", "mean", "refuse")
FEWEST = 10  # rows
# What is asked for where the target is none, by what it is.
_NUMBERS = {
    "text": "write numbers, and nothing where a value is missing, or name another target",
    "boolean": "write 0 and 1, or name another target",
    "date": "write numbers, such as days since a date, or name another target",
}
UNNAMED = "Unnamed: "  # what pandas calls a column without a name, before its number


@dataclass(frozen=True)
class Usable:
    """The columns that are used, target included, in rows that are; and a sentence for everything left out unasked."""

    frame: pd.DataFrame
    notes: tuple[str, ...]


def usable(
    frame: pd.DataFrame,
    target: str,
    *,
    drop: Sequence[str] = (),
    encode: Encode = "refuse",
    missing: Missing = "drop",
) -> Usable:
    """What is left of ``frame`` without the columns and rows that are to be dropped. Twice is as once.

    :raises TableError: as :meth:`gp_rangeformer.regression.TableRegression.fit`.
    """
    check_frame(frame)
    check_option("encode", encode, ENCODE)
    check_option("missing", missing, MISSING)
    _check_columns(frame, target, drop)
    notes: list[str] = []
    frame = frame.drop(columns=[name for name in drop if name in frame.columns])
    if not len(frame):
        raise TableError(f"there are no rows; at least {FEWEST} complete ones are needed")
    if encode == "one-hot":
        for name, note in codes(frame, target).items():
            frame = frame.assign(**{name: as_texts(column_of(frame, name))})
            notes.append(note)
    frame = _without_columns(frame, target, encode, notes)
    if frame.shape[1] == 1:
        raise TableError(f"there is only the target column {target!r}: add at least one feature column")
    for name in frame.columns:
        cells = column_of(frame, name)
        kind = kind_of(cells)
        if kind is not None and kind != "text":
            as_numbers(cells, kind)
    if missing == "refuse":
        refuse_missing(frame, list(frame.columns))
    asked: Any = frame.isna() if missing == "drop" else frame[[target]].isna()
    gone = asked.any(axis=1).to_numpy()
    counts = asked.sum()
    worst = f"; most are missing in column {counts.idxmax()!r}" if gone.any() else ""
    complete, total = int((~gone).sum()), len(frame)
    if complete < FEWEST:
        raise TableError(
            f"{counted(complete, 'complete row')}, {total - complete} with missing values{worst}; at least {FEWEST} "
            "complete rows are needed: add rows, or drop the columns that have gaps"
        )
    if gone.any():
        notes.append(f"dropped {total - complete} of {total} rows with missing values{worst}")
    return Usable(frame.loc[~gone], tuple(notes))


def _check_columns(frame: pd.DataFrame, target: str, drop: Sequence[str]) -> None:
    names = list(frame.columns)
    for name in names:
        if not isinstance(name, str):
            raise TableError(f"column {name!r} has no text for a name: rename the columns (frame.columns = [...])")
    check_unique(names)
    if frame.index.has_duplicates:
        raise TableError("two rows have the same label: frame.reset_index(drop=True) numbers them")
    if names != [target] and len(names) == 1:
        separator = f"is the separator another ({argument('sep', ';')})?"
        raise TableError(f"there is only one column, {names[0]!r}: {separator}")
    for name in (target, *drop):
        if name not in names:
            raise TableError(f"no column {name!r}{closest(name, names)}; its columns: {', '.join(names)}")
    if target in drop:
        raise TableError(f"the target {target!r} is among the columns to drop: name another column")


def codes(frame: pd.DataFrame, target: str) -> dict[str, str]:
    """Columns but the target that :func:`may_be_codes`, with what is said of each that is taken for text."""
    found = {}
    for name in frame.columns:
        cells = column_of(frame, name)
        if name != target and may_be_codes(cells):
            at = first_text(cells, "").at
            said = f"holds {shown(cells, at)} and is taken for text, its numbers for codes"
            found[name] = f"{place(cells, at)}: column {name!r} {said}"
    return found


def check_unique(names: Sequence[str]) -> None:
    """:raises TableError: two columns have one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise TableError(f"column name {twice[0]!r} occurs more than once: rename or drop the duplicates")


def _without_columns(frame: pd.DataFrame, target: str, encode: Encode, notes: list[str]) -> pd.DataFrame:
    """Without empty columns, and without those of text if they are to go."""
    needed = f"a regression needs numbers: {_NUMBERS['text']}"
    kinds = {name: kind_of(column_of(frame, name), needed if name == target else None) for name in frame.columns}
    kind = kinds[target]
    if kind != "number":
        cells = column_of(frame, target)
        if kind is None:
            raise TableError(f"the target {target!r} holds no value: {needed}")
        at, why = first_text(cells, f"a regression needs numbers: {_NUMBERS[kind]}")
        raise TableError(f"{place(frame, at)}: the target {target!r} holds {shown(cells, at)}: {why}")
    for name, kind in kinds.items():
        number = name.removeprefix(UNNAMED)
        if kind is not None and name != number and number.isdigit():
            remedy = f"name it, or leave it out ({argument('drop', [name])})"
            raise TableError(f"column {int(number) + 1} has no name, as a row index has none: {remedy}")
    empty = [name for name, kind in kinds.items() if kind is None]
    if empty:
        notes.append(f"left out, without a single value: {_listed(empty)}")
    texts = [name for name, kind in kinds.items() if kind == "text"]
    if texts and encode == "refuse":
        column = column_of(frame, texts[0])
        drop, one_hot, none = (argument("drop", texts[:1]), *(argument("encode", how) for how in ("one-hot", "drop")))
        at, why = first_text(column, f"drop the column or encode it: {drop}, {one_hot}, or {none} for all text columns")
        others = f" (and {_listed(texts[1:])})" if texts[1:] else ""
        raise TableError(f"{place(frame, at)}: column {texts[0]!r}{others} holds text, {shown(column, at)}: {why}")
    for name in texts:
        column = column_of(frame, name)
        at, why = first_text(column, "")
        if why:
            notes.append(f"{place(frame, at)}: column {name!r} is taken for text, {shown(column, at)}: {why}")
    if encode == "drop" and texts:
        notes.append(f"left out, text: {_listed(texts)}")
        empty += texts
    return frame.drop(columns=empty)


def check_option(name: str, value: object, allowed: Sequence[str]) -> None:
    """:raises ValueError: ``value`` is not among those."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def closest(name: str, names: Iterable[str]) -> str:
    """A guess at what was meant, for an error message."""
    names = list(names)
    close = [one for one in names if one.casefold() == name.strip().casefold()]
    close = close or difflib.get_close_matches(name, names, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
