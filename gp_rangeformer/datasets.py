"""Regression data sets, split and standardised, ready for a Gaussian process.

`load` knows one shipped record (`co2`), three simulators that give any number of points (`robot_arm`, `borehole`,
`wing_weight`), and the UCI sets of a data folder. `load_csv` reads a table of your own. Whatever cannot be read
exactly is refused with a `DatasetError`; the one repair, dropping rows with missing values, is counted and warned of.
"""

import csv
import difflib
import gzip
import io
import math
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Dataset",
    "DatasetError",
    "available",
    "borehole",
    "data_directory",
    "load",
    "load_csv",
    "robot_arm",
    "wing_weight",
]

ENVIRONMENT_VARIABLE = "GP_RANGEFORMER_DATA"
# Beside the checkout, not relative to the working directory: what `load` reads must not depend on where it is called.
_BESIDE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data"

# bike: casual + registered riders are x15 + x16, and their sum is the hourly count, whose logarithm is the target.
_LEAKING_COLUMNS = {"bike": ("x15", "x16")}

_SIMULATOR_TRAIN_ROWS = 2000
_SIMULATOR_NOISE = 0.05
_MISSING = frozenset({"", "na", "nan", "null", "?"})


class DatasetError(ValueError):
    """A data set that cannot be had exactly as asked; the message gives the cause and the remedy."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A regression problem, inputs and target standardised with the training rows' mean and standard deviation.

    A feature that is constant over the training rows says nothing about the target and is 0 in both halves. The
    deviation is the population one, so `train_y` has mean 0 and mean square 1. Back to the target's own unit:
    `y * target_scale + target_mean`.

    Attributes:
        name: the name it was loaded by, or the file's name.
        train_x: n x d, float64 as loaded.
        train_y: n.
        test_x: n_test x d.
        test_y: n_test.
        feature_names: the d columns of the inputs.
        target_name: what `train_y` measures.
        target_mean: mean of the raw training target.
        target_scale: standard deviation of the raw training target.
        source: one line, where the data came from and what was left out.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    feature_names: tuple[str, ...]
    target_name: str
    target_mean: float
    target_scale: float
    source: str

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "Dataset":
        """The same data in another floating dtype, on another device (None: where it is).

        Raises:
            DatasetError: `dtype` is not a floating dtype, or too narrow for a value of the data.
        """
        if not dtype.is_floating_point:
            raise DatasetError(f"{dtype} would round the standardised data away: ask for a floating dtype")
        fields = ("train_x", "train_y", "test_x", "test_y")
        moved = {field: getattr(self, field).to(device=device, dtype=dtype) for field in fields}
        if not all(bool(tensor.isfinite().all()) for tensor in moved.values()):
            raise DatasetError(f"a value of {self.name} overflows {dtype}: use float32 or float64")
        return replace(self, **moved)


def load(
    name: str, *, n: int | None = None, n_test: int = 1000, seed: int = 0, data_dir: str | Path | None = None
) -> Dataset:
    """One of the data sets that `available` lists, standardised, in float64 on the CPU.

    * `co2`: a forecast. The test rows are the last min(n_test, 20 %) weeks, the training rows the weeks before them.
    * `robot_arm`, `borehole`, `wing_weight`: n and n_test fresh uniform inputs; both targets carry Gaussian noise whose
      standard deviation is 5 % of that of the noise-free training target.
    * UCI sets: the standard split 0; columns known to leak the target (bike: x15, x16) are left out.

    Args:
        n: training rows. None: all of them, or 2000 from a simulator. Fewer than all: a random subset, in which the
            subset for a smaller n is contained; `co2` keeps it in time order.
        n_test: at most this many test rows, a random subset of them that does not depend on n.
        seed: of the inputs, the noise and the subsets.
        data_dir: folder that contains `uci/`; see `data_directory`.

    Raises:
        DatasetError: unknown name, missing or damaged file, fewer rows than asked for, or n below 2, n_test below 1.
    """
    _check_sizes(n, n_test)
    generator = torch.Generator().manual_seed(seed)
    if name == "co2":
        return _load_co2(n, n_test, generator)
    if name in _SIMULATORS:
        return _simulate(name, _SIMULATOR_TRAIN_ROWS if n is None else n, n_test, generator)
    folder = data_directory(data_dir)
    if folder is not None and name in (manifest := _manifest(folder)):
        return _load_uci(name, manifest[name], folder, n, n_test, generator)
    names = available(data_dir)
    remedy = "check the name against uci/manifest.csv"
    if folder is None:
        remedy = (
            f"the UCI sets need a data folder with uci/manifest.csv and uci/NAME.csv.gz: "
            f"pass data_dir=, or set {ENVIRONMENT_VARIABLE}"
        )
    raise DatasetError(f"no data set {name!r}{_closest(name, names)}; available: {', '.join(names)}; {remedy}")


def available(data_dir: str | Path | None = None) -> tuple[str, ...]:
    """The names that `load` accepts now: the built-in sets, then the UCI sets whose files are in the data folder.

    Raises:
        DatasetError: as `data_directory`, or the folder's manifest cannot be read.
    """
    folder = data_directory(data_dir)
    uci = () if folder is None else tuple(name for name in _manifest(folder) if _uci_path(folder, name).is_file())
    return ("co2", *_SIMULATORS, *uci)


def data_directory(data_dir: str | Path | None = None) -> Path | None:
    """The folder that contains `uci/`: the argument, else the variable GP_RANGEFORMER_DATA, else `../shared/data`
    beside the checkout if it is there, else None.

    Raises:
        DatasetError: the folder was named, by argument or variable, and has no `uci/`.
    """
    named = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    if named is None:
        return _BESIDE_CHECKOUT if (_BESIDE_CHECKOUT / "uci").is_dir() else None
    folder = Path(named).expanduser()
    if not (folder / "uci").is_dir():
        said_by = ENVIRONMENT_VARIABLE if data_dir is None else "data_dir"
        raise DatasetError(f"{said_by} names {folder}, which has no folder uci/: name the folder that contains it")
    return folder


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
    _check_sizes(n, n_test)
    header, rows, dropped = _read_table(path, target)
    data = torch.tensor(rows, dtype=torch.float64)
    at = header.index(target)
    x, y = torch.cat([data[:, :at], data[:, at + 1 :]], dim=1), data[:, at]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    held_out = max(1, round(0.1 * len(y)))
    # In the file's order, so that the whole training half does not depend on how it was drawn.
    test, train = order[:held_out].sort().values, order[held_out:].sort().values
    test, train = _choose(path.name, test, train, n_test, n, generator)
    return _standardise(
        path.name,
        (x[train], y[train]),
        (x[test], y[test]),
        tuple(name for name in header if name != target),
        target,
        f"{path.name}, random 90/10 split, seed {seed}, {dropped} of {len(y) + dropped} rows dropped: missing values",
    )


def robot_arm(x: Tensor) -> Tensor:
    """Distance of a planar four-segment arm's end from its shoulder.

    f = sqrt(u^2 + v^2), u = sum_i L_i cos(theta_1 + ... + theta_i), v = sum_i L_i sin(theta_1 + ... + theta_i).

    Args:
        x: n x 8: theta_1..4 in [0, 2 pi] rad, L_1..4 in [0, 1].

    Returns:
        n distances, in the unit of the lengths.

    Source: An & Owen (2001), "Quasi-regression"; Surjanovic & Bingham, Virtual Library of Simulation Experiments.
    """
    angles, lengths = x[:, :4].cumsum(dim=1), x[:, 4:]
    return torch.hypot((lengths * angles.cos()).sum(dim=1), (lengths * angles.sin()).sum(dim=1))


def borehole(x: Tensor) -> Tensor:
    """Water flow through a borehole between two aquifers, in m^3/yr.

    f = 2 pi Tu (Hu - Hl) / (ln(r/rw) (1 + 2 L Tu / (ln(r/rw) rw^2 Kw) + Tu / Tl)).

    Args:
        x: n x 8: rw in [0.05, 0.15] m, r in [100, 50000] m, Tu in [63070, 115600] m^2/yr, Hu in [990, 1110] m,
            Tl in [63.1, 116] m^2/yr, Hl in [700, 820] m, L in [1120, 1680] m, Kw in [9855, 12045] m/yr.

    Returns:
        n flow rates.

    Source: Harper & Gupta (1983); Morris, Mitchell & Ylvisaker (1993); Surjanovic & Bingham, Virtual Library of
    Simulation Experiments. All inputs uniform, as for surrogate models there.
    """
    rw, r, tu, hu, tl, hl, length, kw = x.unbind(dim=1)
    log_ratio = (r / rw).log()
    return 2 * math.pi * tu * (hu - hl) / (log_ratio * (1 + 2 * length * tu / (log_ratio * rw**2 * kw) + tu / tl))


def wing_weight(x: Tensor) -> Tensor:
    """Weight of a light aircraft's wing, in lb.

    f = 0.036 Sw^0.758 Wfw^0.0035 (A / cos^2 Lambda)^0.6 q^0.006 lambda^0.04 (100 tc / cos Lambda)^-0.3 (Nz Wdg)^0.49
    + Sw Wp, Lambda in degrees.

    Args:
        x: n x 10: Sw in [150, 200] ft^2, Wfw in [220, 300] lb, A in [6, 10], Lambda in [-10, 10] degrees, q in [16, 45]
            lb/ft^2, lambda in [0.5, 1], tc in [0.08, 0.18], Nz in [2.5, 6], Wdg in [1700, 2500] lb, Wp in
            [0.025, 0.08] lb/ft^2.

    Returns:
        n weights.

    Source: Forrester, Sobester & Keane (2008), "Engineering Design via Surrogate Modelling"; Surjanovic & Bingham,
    Virtual Library of Simulation Experiments.
    """
    sw, wfw, aspect, sweep, q, taper, tc, nz, wdg, wp = x.unbind(dim=1)
    cosine = torch.deg2rad(sweep).cos()
    structure = sw**0.758 * wfw**0.0035 * (aspect / cosine**2) ** 0.6 * q**0.006 * taper**0.04
    return 0.036 * structure * (100 * tc / cosine) ** -0.3 * (nz * wdg) ** 0.49 + sw * wp


class _Simulator(NamedTuple):
    function: Callable[[Tensor], Tensor]
    target: str
    inputs: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


_SIMULATORS = {
    "robot_arm": _Simulator(
        robot_arm,
        "distance",
        ("theta1", "theta2", "theta3", "theta4", "L1", "L2", "L3", "L4"),
        (0.0,) * 8,
        (2 * math.pi,) * 4 + (1.0,) * 4,
    ),
    "borehole": _Simulator(
        borehole,
        "flow_m3_per_year",
        ("rw", "r", "Tu", "Hu", "Tl", "Hl", "L", "Kw"),
        (0.05, 100, 63_070, 990, 63.1, 700, 1120, 9855),
        (0.15, 50_000, 115_600, 1110, 116, 820, 1680, 12_045),
    ),
    "wing_weight": _Simulator(
        wing_weight,
        "weight_lb",
        ("Sw", "Wfw", "A", "Lambda", "q", "lambda", "tc", "Nz", "Wdg", "Wp"),
        (150, 220, 6, -10, 16, 0.5, 0.08, 2.5, 1700, 0.025),
        (200, 300, 10, 10, 45, 1, 0.18, 6, 2500, 0.08),
    ),
}


def _simulate(name: str, n: int, n_test: int, generator: torch.Generator) -> Dataset:
    function, target, inputs, *limits = _SIMULATORS[name]
    low, high = torch.tensor(limits, dtype=torch.float64)

    def draw(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        x = low + (high - low) * torch.rand(rows, len(low), generator=generator, dtype=torch.float64)
        return x, function(x), torch.randn(rows, generator=generator, dtype=torch.float64)

    # The test half first, so that its inputs do not depend on n.
    test_x, test_y, test_noise = draw(n_test)
    train_x, train_y, train_noise = draw(n)
    noise = _SIMULATOR_NOISE * train_y.std(correction=0)
    train, test = (train_x, train_y + noise * train_noise), (test_x, test_y + noise * test_noise)
    source = f"simulator {name} (Surjanovic & Bingham, Virtual Library of Simulation Experiments), noise sd {noise:.3g}"
    return _standardise(name, train, test, inputs, target, source)


def _load_co2(n: int | None, n_test: int, generator: torch.Generator) -> Dataset:
    text = resources.files("gp_rangeformer").joinpath("data").joinpath("co2_weekly.csv").read_text(encoding="utf-8")
    weeks = [(_decimal_year(row["date"]), float(row["co2"])) for row in csv.DictReader(io.StringIO(text))]
    years, ppm = torch.tensor(weeks, dtype=torch.float64).T
    past = len(ppm) - min(n_test, len(ppm) // 5)
    train = torch.arange(past)
    if n is not None:
        train = _subset("co2", train, n, generator).sort().values
    train, test = (years[train, None], ppm[train]), (years[past:, None], ppm[past:])
    source = "Keeling & Whorf (2004), Scripps Institution of Oceanography: weekly CO2 at Mauna Loa, public domain"
    return _standardise("co2", train, test, ("decimal_year",), "co2_ppm", source)


def _decimal_year(iso: str) -> float:
    day = date.fromisoformat(iso)
    start, end = date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return day.year + (day - start).days / (end - start).days


def _uci_path(folder: Path, name: str) -> Path:
    return folder / "uci" / f"{name}.csv.gz"


class _UciSet(NamedTuple):
    rows: int
    d: int
    target: str
    origin: str


def _manifest(folder: Path) -> dict[str, _UciSet]:
    path = folder / "uci" / "manifest.csv"
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return {
                # What follows a semicolon in y is a remark on the set, not the target.
                row["name"]: _UciSet(int(row["n"]), int(row["d"]), row["y"].split(";")[0], row["origin_repo"])
                for row in csv.DictReader(lines)
            }
    except (OSError, KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"cannot read {path} ({error!r}): it lists the UCI sets, with columns name, n, d, y, origin_repo"
        ) from error


def _load_uci(
    name: str, entry: _UciSet, folder: Path, n: int | None, n_test: int, generator: torch.Generator
) -> Dataset:
    path = _uci_path(folder, name)
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
    test, train = _choose(name, (in_test == 1).nonzero()[:, 0], (in_test == 0).nonzero()[:, 0], n_test, n, generator)
    source = f"UCI {name} from {entry.origin}, split 0"
    if leaks:
        source += f", without {' and '.join(leaks)}, which leak the target"
    names = tuple(header[i] for i in kept)
    return _standardise(name, (x[train], y[train]), (x[test], y[test]), names, entry.target, source)


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
            f"{name} has no column {target!r}{_closest(target, header)}; its columns: {', '.join(header)}{hint}"
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


def _check_sizes(n: int | None, n_test: int | None) -> None:
    if n is not None and n < 2:
        raise DatasetError(f"n = {n}: at least 2 training rows are needed to standardise")
    if n_test is not None and n_test < 1:
        raise DatasetError(f"n_test = {n_test}: at least 1 test row is needed")


def _choose(
    name: str, test: Tensor, train: Tensor, n_test: int | None, n: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    # Test rows first, and drawn even where all are kept: neither subset depends on the size of the other.
    test = _subset(name, test, len(test) if n_test is None else min(n_test, len(test)), generator)
    return test, train if n is None else _subset(name, train, n, generator)


def _subset(name: str, rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    if n > len(rows):
        raise DatasetError(f"{name} has {len(rows)} training rows, fewer than n = {n}: lower n, or pass None for all")
    return rows[torch.randperm(len(rows), generator=generator)[:n]]


def _closest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _standardise(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    feature_names: tuple[str, ...],
    target_name: str,
    source: str,
) -> Dataset:
    (train_x, train_y), (test_x, test_y) = train, test
    mean, scale = _moments(train_x)
    target_mean, target_scale = (float(moment) for moment in _moments(train_y[:, None]))
    if target_scale == 0:
        raise DatasetError(
            f"{name}: the target {target_name!r} is constant, {target_mean:g}, over the {len(train_y)} training rows: "
            "raise n, or name another target"
        )
    # Division by infinity makes a constant feature 0 in both halves.
    divisor = torch.where(scale > 0, scale, torch.inf)
    data = Dataset(
        name,
        (train_x - mean) / divisor,
        (train_y - target_mean) / target_scale,
        (test_x - mean) / divisor,
        (test_y - target_mean) / target_scale,
        feature_names,
        target_name,
        target_mean,
        target_scale,
        source,
    )
    for part in (mean, scale, data.train_x, data.train_y, data.test_x, data.test_y):
        if not bool(part.isfinite().all()):
            raise DatasetError(f"{name}: standardising overflows float64: rescale the columns with the largest values")
    return data


def _moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each column; the deviation of a constant column is exactly 0."""
    mean = columns.mean(dim=0)
    centred = columns - mean
    # In units of the largest deviation: squares of 1e-200 or 1e200 leave the range of float64.
    spread = centred.abs().amax(dim=0)
    scale = spread * (centred / spread).square().mean(dim=0).sqrt()
    # The mean of equal numbers is off by rounding, so a constant column shows in its range, not in its deviation.
    eps = torch.finfo(columns.dtype).eps
    constant = columns.amax(dim=0) - columns.amin(dim=0) <= 8 * eps * columns.abs().amax(dim=0)
    return mean, torch.where(constant, torch.zeros_like(scale), scale)
