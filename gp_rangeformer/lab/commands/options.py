"""What several commands let the user ask for: their options, the data they name, and whether that can be had."""

from __future__ import annotations

import contextlib
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gp_rangeformer.lab.commands.console import open_console, refuse
from gp_rangeformer.lab.outputs import check

if TYPE_CHECKING:
    from gp_rangeformer.lab.datasets import Dataset, TableOptions

Data = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATA.csv", help="Table with a header line: CSV and the like, plain or .gz; Excel; Parquet."
    ),
]
Target = Annotated[str | None, typer.Option(help="Column of DATA.csv to predict.")]
N = Annotated[int | None, typer.Option(min=2, help="Training rows; all of them, or 2000 from a simulator.")]
NTest = Annotated[int, typer.Option(min=1, help="At most this many test rows.")]
DEFAULT_KERNEL = "trend-seasonal for co2, else matern32"  # as lab.models has it, whose PyTorch help does not wait for
KernelName = Annotated[
    str | None,
    typer.Option(
        help="matern32, matern12, matern52, rbf, rq, periodic, linear+rbf, or trend-seasonal for co2.",
        show_default=DEFAULT_KERNEL,
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Adam steps.")]
Rate = Annotated[float, typer.Option(min=0.0, help="Learning rate of Adam.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the data's split and of GPyTorch's probes.")]
MinSize = Annotated[int | None, typer.Option(min=1, help="n from which RangeFormer answers; else settings.min_size.")]
Sep = Annotated[str | None, typer.Option(help="Between cells of a text file.", show_default="as in its header")]
Decimal = Annotated[str, typer.Option(help="In numbers of a text or an Excel file: , reads 1,5.")]
Thousands = Annotated[str | None, typer.Option(help="Between groups of three digits: . reads 1.000 as a thousand.")]
DayFirst = Annotated[
    bool | None,
    typer.Option(
        "--dayfirst/--no-dayfirst", help="Read dates like 31.1.2024, or else 1/31/2024.", show_default="as text"
    ),
]
Encoding = Annotated[str, typer.Option(help="Of a text file; of Windows often cp1252.")]
Sheet = Annotated[str | None, typer.Option(help="Of an Excel file.", show_default="the first")]
Drop = Annotated[
    str, typer.Option(help='Columns to leave out, separated by commas; "quoted" those with a comma in their name.')
]
Encode = Annotated[
    str, typer.Option(help="Text columns: refuse, drop, or one-hot (an input for each of at most 20 texts).")
]
Missing = Annotated[
    str, typer.Option(help="Rows with missing cells: drop, mean (of texts the most frequent), or refuse.")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder that contains uci/, for the UCI data sets.")]


def load(
    data: Path | None,
    target: str | None,
    names: str | None,
    n: int | None,
    n_test: int,
    seed: int,
    data_dir: Path | None,
    options: TableOptions | None = None,
) -> list[Dataset]:
    """The data sets of one command."""
    from gp_rangeformer.lab import datasets

    if data is not None and names is not None:
        refuse("DATA.csv and --dataset exclude each other: give one of them")
    if data is None and target is not None:
        refuse("--target names a column of DATA.csv, which is missing: give the file")
    if data is not None and target is None:
        refuse(f"{data} needs --target COLUMN, the column to predict")
    with saying_warnings():
        if data is not None and target is not None:
            return [datasets.load_csv(data, target, n=n, n_test=n_test, seed=seed, options=options)]
        wanted = [name.strip() for name in (names or "co2").split(",") if name.strip()]
        return [datasets.load(name, n=n, n_test=n_test, seed=seed, data_dir=data_dir) for name in wanted]


@contextlib.contextmanager
def saying_warnings() -> Iterator[None]:
    """What is left out of a table, and where a fit goes on, is said in a line each; other warnings are not."""
    from gp_rangeformer.regression import TableWarning

    def say(message: Warning | str, category: type[Warning], *others: object) -> None:
        if issubclass(category, TableWarning):
            open_console(stderr=True).print(f"Warning: {message}", style="yellow", markup=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = say
        yield


def table_options(
    sep: str | None,
    drop: str = "",
    encode: str = "refuse",
    missing: str = "drop",
    decimal: str = ".",
    thousands: str | None = None,
    dayfirst: bool | None = None,
    encoding: str = "utf-8",
    sheet: str | None = None,
) -> TableOptions:
    """In the order of :class:`~gp_rangeformer.lab.datasets.TableOptions`."""
    from gp_rangeformer.lab.datasets import TableOptions
    from gp_rangeformer.regression.rows import ENCODE, MISSING

    for option, value, allowed in (("--encode", encode, ENCODE), ("--missing", missing, MISSING)):
        if value not in allowed:
            refuse(f"{option} {value!r}: {', '.join(allowed)}")
    names = next(csv.reader([drop], skipinitialspace=True), [])
    left_out = tuple(name.strip() for name in names if name.strip())
    found = (separator(sep), left_out, encode, missing, decimal, thousands, dayfirst, encoding, sheet)
    return TableOptions(*found)  # type: ignore[arg-type]


def separator(sep: str | None) -> str | None:
    """As typed in a shell, where a tab is hard to type."""
    found = "\t" if sep in ("\\t", "tab") else sep
    if found is not None and len(found) != 1:
        refuse(f"--sep {sep!r}: one character, or tab")
    return found


def check_output(option: str, path: Path | None, data: Path | None = None, folder: Path | None = None) -> None:
    """Whether the file can be written, before anything is computed for it, and is not the table itself or of a model.

    :param folder: that the command writes a model to.
    """
    from gp_rangeformer.regression.files import is_kept

    if path is None:
        return
    if not path.parent.is_dir():
        refuse(f"{option} {path}: there is no folder {path.parent}: make it, or choose another path")
    check(option, path)
    if data is not None and path.exists() and data.exists() and path.samefile(data):
        refuse(f"{option} {path} is the table itself: choose another path")
    if is_kept(path, folder):
        refuse(f"{option} {path} is a file of the model in {path.parent}: choose another path")


def check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        refuse(f"no dtype {dtype!r}: float32 or float64")


def check_device(device: str) -> None:
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        refuse(f"no device {device!r}: cpu, cuda or cuda:N")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= found:
            refuse(f"device {device!r}: torch finds {found} CUDA devices here; use --device cpu")
