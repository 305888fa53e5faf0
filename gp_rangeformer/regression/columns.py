"""How columns become inputs: learned on the training rows, applied to any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gp_rangeformer.regression.errors import TableError, argument, import_pandas
from gp_rangeformer.regression.kinds import (
    KINDS,
    MOST_CATEGORIES,
    Kind,
    as_dates,
    as_numbers,
    as_texts,
    check_frame,
    column_of,
    first_text,
    is_zoned,
    kind_of,
    place,
    refuse_missing,
    shown,
)
from gp_rangeformer.regression.rows import MISSING, Missing, check_unique, closest
from gp_rangeformer.regression.scaling import check_digits, moments

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """One column. ``categories``: the texts of the training rows, sorted, an input each. ``fill``: what stands for a
    missing cell, a number or a text; None: such rows have no inputs. ``zoned``: whether dates have a time zone."""

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    fill: float | str | None = None
    zoned: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of its inputs."""
        return tuple(f"{self.name}={text}" for text in self.categories) if self.kind == "text" else (self.name,)

    def encoded(self, cells: pd.Series) -> np.ndarray:
        """t x inputs, NaN in rows where the cell is missing and nothing stands for it.

        :raises TableError: a cell is of another kind, infinite, or a text that no training row has.
        """
        if self.kind != "text":
            values = as_numbers(cells, self.kind, self.zoned)
            return np.where(np.isnan(values), np.nan if self.fill is None else self.fill, values)[:, None]
        number = {text: at for at, text in enumerate(self.categories)}
        found = np.zeros((len(cells), len(number)))
        for at, text in enumerate(as_texts(cells)):
            text = self.fill if text is None else text
            if text is None:
                found[at] = np.nan
            elif text in number:
                found[at, number[text]] = 1.0
            else:
                known = ", ".join(map(repr, self.categories))
                raise TableError(
                    f"{place(cells, at)}: column {self.name!r} is {text!r}, which no training row has"
                    f"{closest(str(text), number)} (known: {known}): leave the row out, or fit again with such rows"
                )
        return found

    def decoded(self, values: np.ndarray) -> Any:
        """The cells of ``values`` (t x inputs, without NaN); numbers to rounding."""
        if self.kind == "text":
            return np.array(self.categories, dtype=object)[values.argmax(axis=1)]
        if self.kind == "date":
            return as_dates(values[:, 0], self.zoned).array
        return values[:, 0] > 0.5 if self.kind == "boolean" else values[:, 0]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are inputs, in their order, and what becomes of missing cells."""

    inputs: tuple[Column, ...]
    missing: Missing = "drop"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the d inputs: a column's own, or ``city=Oslo``."""
        return tuple(name for column in self.inputs for name in column.names)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each column's inputs are."""
        found, start = {}, 0
        for column in self.inputs:
            found[column.name] = slice(start, start + len(column.names))
            start += len(column.names)
        return found

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.inputs if column.kind == "text")

    def encoded(self, frame: pd.DataFrame) -> Tensor:
        """t x d, float64, NaN in rows that have a missing cell that nothing stands for.

        :raises TableError: as :meth:`Column.encoded`; a column is missing, or a cell where that was to be refused; two
            columns have one name.
        """
        check_frame(frame)
        check_unique(list(frame.columns))
        for column in self.inputs:
            if column.name not in frame.columns:
                names = list(map(str, frame.columns))
                raise TableError(f"no column {column.name!r}{closest(column.name, names)}; columns: {', '.join(names)}")
        if self.missing == "refuse":
            refuse_missing(frame, [column.name for column in self.inputs])
        return torch.from_numpy(np.hstack([column.encoded(column_of(frame, column.name)) for column in self.inputs]))

    def known(self, frame: pd.DataFrame) -> np.ndarray:
        """Whether every text of a row is one that a training row has."""
        found = np.ones(len(frame), dtype=bool)
        for column in self.inputs:
            if column.kind == "text":
                found &= [text is None or text in column.categories for text in as_texts(column_of(frame, column.name))]
        return found

    def decoded(self, x: Tensor) -> pd.DataFrame:
        """The inverse of :meth:`encoded` for rows without NaN."""
        pd = import_pandas()
        values, slices = x.detach().double().cpu().numpy(), self.slices
        return pd.DataFrame({column.name: column.decoded(values[:, slices[column.name]]) for column in self.inputs})

    def to_json(self) -> dict[str, Any]:
        return {"missing": self.missing, "inputs": [asdict(column) for column in self.inputs]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Columns:
        """:raises ValueError, KeyError, TypeError: it is none of :meth:`to_json`."""
        inputs = tuple(Column(**{**one, "categories": tuple(one["categories"])}) for one in content["inputs"])
        if content["missing"] not in MISSING or not inputs or any(column.kind not in KINDS for column in inputs):
            raise ValueError("there is a column of unknown kind, or none")
        return cls(inputs, content["missing"])


def learned(frame: pd.DataFrame, target: str, missing: Missing) -> tuple[Columns, tuple[str, ...]]:
    """The columns of ``frame`` (:func:`gp_rangeformer.regression.rows.usable`) as inputs, and the constant ones left
    out, with what they hold.

    :raises TableError: a text column has more than 20 different texts; a number is infinite; every column is constant;
        numbers have lost digits that they differ in.
    """
    columns, constant = [], []
    for name in frame.columns:
        if name == target:
            continue
        found = _column(column_of(frame, name), missing)
        (columns if found is not None else constant).append(found if found is not None else name)
    if not columns:
        raise TableError(f"every column but {target!r} is constant: there is nothing to learn from")
    notes = (f"left out, constant: {', '.join(map(repr, constant))}",) if constant else ()
    return Columns(tuple(columns), missing), notes


def _column(cells: pd.Series, missing: Missing) -> Column | None:
    """None where it is constant."""
    name, kind = str(cells.name), kind_of(cells)
    if kind is None:
        return None
    if kind == "text":
        texts = [text for text in as_texts(cells) if text is not None]
        categories = tuple(sorted(set(texts)))
        if len(categories) > MOST_CATEGORIES:
            remedy = f"drop it ({argument('drop', [name])}), or put numbers for it (dates are read as 2024-01-31)"
            at, why = first_text(cells, remedy)
            such = f"such as {shown(cells, at)} ({place(cells, at)})"
            raise TableError(
                f"column {name!r} has {len(categories)} different texts, {such}; at most {MOST_CATEGORIES} become "
                f"inputs: {why}"
            )
        fill = max(categories, key=texts.count) if missing == "mean" else None
        return Column(name, kind, categories, fill) if len(categories) > 1 else None
    values = as_numbers(cells, kind)
    values = values[~np.isnan(values)]
    check_digits(name, values)
    mean, scale = moments(torch.from_numpy(values)[:, None])
    if float(scale) == 0:
        return None
    typical = float(mean) if kind != "boolean" else float(mean > 0.5)
    zoned = kind == "date" and is_zoned(cells) is True
    return Column(name, kind, fill=typical if missing == "mean" else None, zoned=zoned)
