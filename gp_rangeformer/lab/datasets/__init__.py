"""Regression data sets, split and standardised, ready for a Gaussian process.

`load` knows one shipped record (`co2`), three simulators that give any number of points (`robot_arm`, `borehole`,
`wing_weight`), and the UCI sets of a data folder. `load_csv` reads a table of your own, `load_split` leaves it raw.
Whatever cannot be read exactly is refused with a `DatasetError`; what is left out is counted and warned of.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gp_rangeformer.lab.datasets.co2 import load_co2
from gp_rangeformer.lab.datasets.dataset import Dataset, DatasetError, check_sizes
from gp_rangeformer.lab.datasets.simulators import SIMULATORS, TRAIN_ROWS, borehole, robot_arm, simulate, wing_weight
from gp_rangeformer.lab.datasets.table import Split, TableOptions, dataset_of, load_csv, load_split, split_of
from gp_rangeformer.lab.datasets.uci import load_uci, manifest, uci_path
from gp_rangeformer.regression.rows import closest

__all__ = [
    "Dataset",
    "DatasetError",
    "Split",
    "TableOptions",
    "available",
    "borehole",
    "data_directory",
    "dataset_of",
    "load",
    "load_csv",
    "load_split",
    "robot_arm",
    "split_of",
    "wing_weight",
]

ENVIRONMENT_VARIABLE = "GP_RANGEFORMER_DATA"
# Beside the checkout, not relative to the working directory: what `load` reads must not depend on where it is called.
_BESIDE_CHECKOUT = Path(__file__).resolve().parents[3].parent / "shared" / "data"


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
    check_sizes(n, n_test)
    generator = torch.Generator().manual_seed(seed)
    if name == "co2":
        return load_co2(n, n_test, generator)
    if name in SIMULATORS:
        return simulate(name, TRAIN_ROWS if n is None else n, n_test, generator)
    folder = data_directory(data_dir)
    if folder is not None and name in (sets := manifest(folder)):
        return load_uci(name, sets[name], folder, n, n_test, generator)
    names = available(data_dir)
    remedy = "check the name against uci/manifest.csv"
    if folder is None:
        remedy = (
            f"the UCI sets need a data folder with uci/manifest.csv and uci/NAME.csv.gz: "
            f"pass data_dir= (--data-dir), or set {ENVIRONMENT_VARIABLE}"
        )
    raise DatasetError(f"no data set {name!r}{closest(name, names)}; available: {', '.join(names)}; {remedy}")


def available(data_dir: str | Path | None = None) -> tuple[str, ...]:
    """The names that `load` accepts now: the built-in sets, then the UCI sets whose files are in the data folder.

    Raises:
        DatasetError: as `data_directory`, or the folder's manifest cannot be read.
    """
    folder = data_directory(data_dir)
    uci = () if folder is None else tuple(name for name in manifest(folder) if uci_path(folder, name).is_file())
    return ("co2", *SIMULATORS, *uci)


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
