"""How numbers and dates may be written in a text, and what is said of those that are written otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from numbers import Real
from typing import NamedTuple

from gp_rangeformer.regression.errors import TableError, argument

_TIME = r"(?:[ T]\d?\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})([-/.])(\d\d)\2(\d\d)({_TIME})")
_YEAR_LAST = re.compile(rf"(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}})({_TIME})")
_TWO_DIGITS = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d\d)")
_ZONE = re.compile(r":\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)$")
# What typists take for the same sign.
_ALIKE = {" ": " \u00a0\u202f", "'": "'\u2019"}
_GROUPED, _SHORT = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}"), re.compile(r"[+-]?(0|[1-9]\d{0,2})")
_ENOUGH = 1000  # cells of a column, to see how it is written
_SIGNS = {",": "a comma", ".": "a point", " ": "spaces", "'": "apostrophes"}
# A number beside what is no part of it: 5 %, $1,000, 12 kg. Letters before it are more likely a name: row 5.
_ADORNED = re.compile(r"[+-]?(?P<before>[^\w\s+\-.,]?)\s*[+-]?[\d.,]*\d[\d.,]*\s*(?P<after>[^\d+\-.,]*)")


@dataclass(frozen=True)
class Notation:
    """How numbers and dates are written, as :func:`pandas.read_csv` has it.

    ``decimal``: between whole and fraction. ``thousands``: between groups of three digits, or None; a space stands for
    narrow and fixed ones too, and where it is a point 0.123 is no number. ``dayfirst``: whether 3/4/2024 is the third
    of April; None: such dates are text.

    :raises TableError: a sign is not one character, or cannot be told from a number's others.
    """

    decimal: str = "."
    thousands: str | None = None
    dayfirst: bool | None = None

    def __post_init__(self) -> None:
        for name, sign in (("decimal", self.decimal), ("thousands", self.thousands)):
            if sign is not None and (len(sign) != 1 or sign.isalnum() or sign in "+-"):
                raise TableError(f"{argument(name, sign)}: one character that is no digit, letter, plus or minus")
        if self.decimal == self.thousands:
            raise TableError(f"{argument('decimal', self.decimal)}: the same sign stands between thousands")

    def number(self, cell: str) -> float | None:
        """None where it is none."""
        if self._pattern is not None:
            found = self._pattern.fullmatch(cell)
            if found is None:
                return _plain(cell) if cell.strip("+-").isalpha() else None
            cell = re.sub(self._between, "", cell) if self.thousands is not None else cell
            cell = cell.replace(self.decimal, ".")
        return _plain(cell)

    def date(self, cell: str) -> str | None:
        """In ISO 8601, whether or not there is such a day; None where it is none."""
        if found := _YEAR_FIRST.fullmatch(cell):
            year, _, month, day, time = found.groups()
        elif self.dayfirst is not None and (found := _YEAR_LAST.fullmatch(cell)):
            first, _, second, year, time = found.groups()
            day, month = (first, second) if self.dayfirst else (second, first)
        else:
            return None
        time = time if time[2:3] != ":" else f"{time[0]}0{time[1:]}"  # 9:30 is 09:30
        return f"{year}-{month:0>2}-{day:0>2}{time}"

    @property
    def _between(self) -> str:
        return f"[{re.escape(_ALIKE.get(self.thousands or '', self.thousands or ''))}]"

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        """Of other numbers than Python's."""
        if self.decimal == "." and self.thousands is None:
            return None
        groups = "" if self.thousands is None else rf"|[1-9]\d{{0,2}}(?:{self._between}\d{{3}})+"
        point = re.escape(self.decimal)
        return re.compile(rf"[+-]?(?={point}?\d)(?:\d+{groups})?(?:{point}\d*)?([eE][+-]?\d+)?")


def has_zone(date: str) -> bool:
    """:param date: as :meth:`Notation.date` gives it."""
    return _ZONE.search(date) is not None


def thousands_by_points(cells: Sequence[object]) -> int | None:
    """The first of a column's numbers whose point may stand between thousands, as in 6.370 beside 997; else None.

    Two numbers at least have a point, always before three digits, and the others, of which one is not 0, are whole and
    below a thousand. With three decimals all of them would have a point, and without zeros at the end some fewer
    digits.

    :param cells: texts, numbers, and None where they are missing.
    """
    grouped, whole = [], False
    for at, cell in enumerate(cells):
        text = cell if isinstance(cell, str) else str(cell).removesuffix(".0")
        if isinstance(cell, str) and _GROUPED.fullmatch(cell):
            grouped.append(at)
        elif _SHORT.fullmatch(text):
            whole = whole or float(text) != 0
        elif cell is not None:
            return None
    return grouped[0] if len(grouped) > 1 and whole else None


class Cause(NamedTuple):
    """Why a column is text: ``at``: its first cell of that kind; ``said``: what it is, and what to do."""

    at: int
    said: str


def cause(cells: Sequence[object]) -> Cause | None:
    """Of a column most of whose cells are numbers or dates in another notation; None where they are just text.

    :param cells: texts, and others (numbers, what is missing), which count as they are.
    """
    texts = dict(islice(((at, cell.strip()) for at, cell in enumerate(cells) if isinstance(cell, str)), _ENOUGH))
    known = (cell for cell in cells if isinstance(cell, Real) and not isinstance(cell, bool) and cell == cell)
    numbers = [str(cell) for cell in islice(known, _ENOUGH)]
    if not texts:
        return None
    return _number_cause(texts, numbers) or _date_cause(texts) or _adorned_cause(texts)


_OTHERS = (
    Notation(","),
    Notation(".", ","),
    Notation(",", "."),
    *(Notation(decimal, thousands) for thousands in (" ", "'") for decimal in (".", ",")),
)


def _number_cause(texts: dict[int, str], numbers: Sequence[str]) -> Cause | None:
    odd = {at: cell for at, cell in texts.items() if _plain(cell) is None}
    whole = [number.removesuffix(".0") for number in numbers]
    plain = [cell for at, cell in texts.items() if at not in odd]
    if not odd and plain:
        return Cause(next(iter(texts)), "a number that is stored as text (convert the column to numbers)")
    fitting = []
    for notation in _OTHERS:
        known = [at for at, cell in odd.items() if notation.number(cell) is not None]
        count = len(known) + sum(notation.number(cell) is not None for cell in (*plain, *whole))
        if known and 2 * count > len(texts) + len(numbers):
            fitting.append((count, known[0], notation))
    if not fitting:
        return None
    most = max(count for count, _, _ in fitting)
    best = [(at, notation) for count, at, notation in fitting if count == most]
    # Those that say least; two of them where 1,234 may be either.
    fewest = min(_signs(notation) for _, notation in best)
    best = [(at, notation) for at, notation in best if _signs(notation) == fewest]
    said = " or ".join(_described(notation) for _, notation in best[:2])
    return Cause(best[0][0], said)


def _signs(notation: Notation) -> int:
    return (notation.decimal != ".") + (notation.thousands is not None)


def _described(notation: Notation) -> str:
    decimal, thousands = notation.decimal, notation.thousands
    parts, settings = [], []
    if decimal != ".":
        parts.append(f"{_SIGNS[decimal]} for the decimal point")
        settings.append(argument("decimal", decimal))
    if thousands is not None:
        parts.append(f"{_SIGNS[thousands]} between thousands")
        settings.append(argument("thousands", thousands))
    return f"a number with {' and '.join(parts)} (read the table with {' '.join(settings)})"


def _date_cause(texts: dict[int, str]) -> Cause | None:
    """Those that begin with a year are dates already, and text beside others."""
    dates = {at: found for at, cell in texts.items() if (found := _YEAR_LAST.fullmatch(cell))}
    short = [at for at, cell in texts.items() if _TWO_DIGITS.fullmatch(cell)]
    plain = [cell for cell in texts.values() if _YEAR_FIRST.fullmatch(cell)]
    beside = f", beside dates with it first, as {plain[0]!r}" if plain else ""
    if dates and 2 * (len(dates) + len(plain)) > len(texts):
        largest = [max(int(found[part]) for found in dates.values()) for part in (1, 3)]
        ways = [name for month, name in ((largest[1], True), (largest[0], False)) if month <= 12]
        read = " or ".join(f"{argument('dayfirst', way)}, {'day' if way else 'month'} first" for way in ways)
        both = ", which reads both" if plain else ""
        said = f"a date without its year first{beside} (read the table with {read}{both})"
        said = said if ways else "no day of a calendar"
        return Cause(next(iter(dates)), said)
    if short and 2 * (len(short) + len(plain)) > len(texts):
        return Cause(short[0], f"a date with two digits for a year{beside} (write it as 2024-01-31)")
    return None


def _adorned_cause(texts: dict[int, str]) -> Cause | None:
    found = {at: found for at, cell in texts.items() if (found := _ADORNED.fullmatch(cell))}
    marks = {(one["before"].strip(), one["after"].strip()) for one in found.values()} - {("", "")}
    if 2 * len(found) <= len(texts) or len(marks) != 1:
        return None
    mark = " and ".join(repr(sign) for sign in next(iter(marks)) if sign)
    at = next(at for at, one in found.items() if one["before"].strip() or one["after"].strip())
    return Cause(at, f"a number with {mark} (write the number alone)")


def _plain(cell: str) -> float | None:
    # float() also reads "1_000" and non-ASCII digits; in a table these are more likely text.
    if "_" in cell or not cell.isascii():
        return None
    try:
        return float(cell)
    except ValueError:
        return None
