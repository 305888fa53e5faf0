"""The UCI sets of a data folder: uci/NAME.csv.gz, described by uci/manifest.csv."""

from __future__ import annotations

import csv
import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gp_rangeformer.lab.datasets.dataset import Dataset, DatasetError, choose, standardise

# bike: casual + registered riders are x15 + x16, and their sum is the hourly count, whose logarithm is the target.
_LEAKING_COLUMNS = {"bike": ("x15", "x16")}


def uci_path(folder: Path, name: str) -> Path:
    return folder / "uci" / f"{name}.csv.gz"


class UciSet(NamedTuple):
    rows: int
    d: int
    target: str
    origin: str


def manifest(folder: Path) -> dict[str, UciSet]:
    path = folder / "uci" / "manifest.csv"
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return {
                # What follows a semicolon in y is a remark on the set, not the target.
                row["name"]: UciSet(int(row["n"]), int(row["d"]), row["y"].split(";")[0], row["origin_repo"])
                for row in csv.DictReader(lines)
            }
    except (OSError, KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"cannot read {path} ({error!r}): it lists the UCI sets, with columns name, n, d, y, origin_repo"
        ) from error


def load_uci(name: str, entry: UciSet, folder: Path, n: int | None, n_test: int, generator: torch.Generator) -> Dataset:
    path = uci_path(folder, name)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            header = lines.readline().rstrip("\r\n").split(",")
            table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float64, ndmin=2))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetError(f"cannot read {path} ({error}): fetch the file again") from error

    if header != [*(f"x{i}" for i in range(entry.d)), "y", "is_test"] or table.shape != (entry.rows, len(header)):
        raise DatasetError(
            f"{path} has {len(table)} rows of {', '.join(header)}, but the manifest says {entry.rows} rows of "
            f"x0 to x{entry.d - 1}, y, is_test: fetch the file again"
        )
    in_test = table[:, -1]
    if not bool(table.isfinite().all()) or set(in_test.tolist()) != {0.0, 1.0}:
        raise DatasetError(f"{path} has values that are not finite, or is_test is not 0 and 1: fetch the file again")

    leaks = _LEAKING_COLUMNS.get(name, ())
    kept = [i for i in range(entry.d) if header[i] not in leaks]
    x, y = table[:, kept], table[:, entry.d]
    test, train = choose(name, (in_test == 1).nonzero()[:, 0], (in_test == 0).nonzero()[:, 0], n_test, n, generator)
    source = f"UCI {name} from {entry.origin}, split 0"
    if leaks:
        source += f", without {' and '.join(leaks)}, which leak the target"
    names = tuple(header[i] for i in kept)
    return standardise(name, (x[train], y[train]), (x[test], y[test]), names, entry.target, source, test + 1)
