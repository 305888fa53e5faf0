"""A table of the user's own, split at random: raw, or as a data set."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gp_rangeformer.lab.datasets.dataset import Dataset, DatasetError, check_sizes, choose, standardise
from gp_rangeformer.regression.columns import learned
from gp_rangeformer.regression.errors import TableError, TableWarning, counted, import_pandas
from gp_rangeformer.regression.kinds import as_numbers, column_of
from gp_rangeformer.regression.reading import read_table
from gp_rangeformer.regression.rows import Encode, Missing, codes, usable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableOptions:
    """How a table is read, as :func:`gp_rangeformer.regression.read_table` says, and which columns to leave out, what
    becomes of text columns and missing cells, as :meth:`gp_rangeformer.regression.TableRegression.fit` says."""

    sep: str | None = None
    drop: tuple[str, ...] = ()
    encode: Encode = "refuse"
    missing: Missing = "drop"
    decimal: str = "."
    thousands: str | None = None
    dayfirst: bool | None = None
    encoding: str = "utf-8"
    sheet: str | None = None

    def read(self, path: Path, text: Sequence[str] = (), used: Sequence[str] | None = None) -> pd.DataFrame:
        """As :func:`gp_rangeformer.regression.read_table`."""
        return read_table(
            path,
            self.sep,
            text,
            decimal=self.decimal,
            thousands=self.thousands,
            dayfirst=self.dayfirst,
            encoding=self.encoding,
            sheet=self.sheet,
            used=used,
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Training and held-out rows of a table, target and inputs in their own units, indexed by line or row of the file;
    ``source``: one line, where they came from and what was left out; ``notes``: that, one sentence each."""

    name: str
    target: str
    train: pd.DataFrame
    held_out: pd.DataFrame
    source: str
    notes: tuple[str, ...] = ()


def load_split(
    path: str | Path,
    target: str,
    *,
    n: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    options: TableOptions | None = None,
) -> Split:
    """A table (CSV and the like, Excel, Parquet: :func:`gp_rangeformer.regression.read_table`), split 90/10 at random.

    Rows that cannot be used are left out, with a warning and a count in `source`.

    Args:
        path: the file.
        target: the header of the column to predict.
        n: training rows, a random subset of the 90 %. None: all of them.
        n_test: at most this many test rows, out of the 10 %. None: all of them.
        seed: of the split and the subsets.

    Raises:
        DatasetError: the file or what it holds cannot be used, naming line, column and remedy; n exceeds the rows there
            are.
    """
    return _split(Path(path), target, n, n_test, seed, options or TableOptions(), 3)


def load_csv(
    path: str | Path,
    target: str,
    *,
    n: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    options: TableOptions | None = None,
) -> Dataset:
    """As `load_split`, with columns encoded as inputs and everything standardised by the training rows.

    Raises:
        DatasetError: as `load_split`; the target is constant, or so is every other column.
    """
    options = options or TableOptions()
    return dataset_of(_split(Path(path), target, n, n_test, seed, options, 3), options.missing)


def dataset_of(split: Split, missing: Missing = "drop") -> Dataset:
    """The rows encoded as inputs and standardised.

    Raises:
        DatasetError: the target is constant, or so is every other column.
    """
    with _refusing(f"{split.name}: "):
        columns, notes = learned(split.train, split.target, missing)
        for note in notes:
            warnings.warn(f"{split.name}: {note}", TableWarning, stacklevel=3)
        train, test = (
            (columns.encoded(part), torch.tensor(as_numbers(column_of(part, split.target), "number")))
            for part in (split.train, split.held_out)
        )
    rows = torch.tensor(split.held_out.index.to_numpy())
    return standardise(split.name, train, test, columns.names, split.target, split.source, rows)


def split_of(data: Dataset) -> Split:
    """The rows of a data set in their own units, to rounding; without its constant columns.

    Raises:
        DatasetError: pandas is not installed.
    """
    with _refusing():
        pd = import_pandas()
    varying = [at for at, scale in enumerate(data.inputs.scale.tolist()) if scale > 0]

    def frame(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> pd.DataFrame:
        raw = data.inputs.restored(x)
        columns = {data.feature_names[at]: raw[:, at].numpy() for at in varying}
        target = (y * data.target_scale + data.target_mean).numpy()
        return pd.DataFrame({data.target_name: target, **columns}, index=pd.Index(rows.numpy(), name="row"))

    train = frame(data.train_x, data.train_y, torch.arange(1, len(data.train_y) + 1))
    held_out = frame(data.test_x, data.test_y, data.test_rows)
    return Split(data.name, data.target_name, train, held_out, data.source)


def _split(
    path: Path, target: str, n: int | None, n_test: int | None, seed: int, options: TableOptions, stacklevel: int
) -> Split:
    check_sizes(n, n_test)
    with _refusing():
        table, notes = _read(path, target, options)
    with _refusing(f"{path.name}, "):
        found = usable(table, target, drop=options.drop, encode=options.encode, missing=options.missing)
    count, total = len(found.frame), len(table)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    held_out = max(1, round(0.1 * count))
    # In the file's order, so that the whole training half does not depend on how it was drawn.
    test, train = order[:held_out].sort().values, order[held_out:].sort().values
    test, train = choose(path.name, test, train, n_test, n, generator)
    rows, unseen = found.frame.iloc[train.numpy()], found.frame.iloc[test.numpy()]
    notes = list(dict.fromkeys((*notes, *found.notes)))
    with _refusing(f"{path.name}: "):
        known = learned(rows, target, options.missing)[0].known(unseen)
    if not known.all():
        notes.append(f"left out {counted(int((~known).sum()), 'held-out row')} with a text that no training row has")
    for note in notes:
        warnings.warn(f"{path.name}: {note}", TableWarning, stacklevel=stacklevel)
    source = f"{path.name}, random 90/10 split, seed {seed}, {total - count} of {total} rows dropped: missing values"
    return Split(path.name, target, rows, unseen[known], source, tuple(notes))


def _read(path: Path, target: str, options: TableOptions) -> tuple[pd.DataFrame, list[str]]:
    """Columns that are codes as they are written, where 01 is not 1, and what is said of them."""
    table = options.read(path)
    if options.encode != "one-hot":
        return table, []
    found = {name: note for name, note in codes(table, target).items() if name not in options.drop}
    if found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TableWarning)  # which were said
            table = options.read(path, tuple(found))
    return table, list(found.values())


@contextlib.contextmanager
def _refusing(prefix: str = "") -> Iterator[None]:
    try:
        yield
    except TableError as error:
        raise DatasetError(f"{prefix}{error}") from error
    except ImportError as error:
        raise DatasetError(str(error)) from error
