"""What several commands let the user ask for: their options, the data they name, and whether that can be had."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gp_rangeformer.lab.commands.console import open_console, refuse

if TYPE_CHECKING:
    from gp_rangeformer.lab.datasets import Dataset

Data = Annotated[Path | None, typer.Argument(metavar="DATA.csv", help="Table with a header line, plain or .gz.")]
Target = Annotated[str | None, typer.Option(help="Column of DATA.csv to predict.")]
N = Annotated[int | None, typer.Option(min=2, help="Training rows; all of them, or 2000 from a simulator.")]
NTest = Annotated[int, typer.Option(min=1, help="At most this many test rows.")]
KernelName = Annotated[
    str | None,
    typer.Option(
        help="matern32, matern12, matern52, rbf, rq, periodic, linear+rbf, or trend-seasonal for co2.",
        show_default="trend-seasonal for co2, else matern32",
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Adam steps.")]
Rate = Annotated[float, typer.Option(min=0.0, help="Learning rate of Adam.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the data's split and of GPyTorch's probes.")]
MinSize = Annotated[int | None, typer.Option(min=1, help="n from which RangeFormer answers; else settings.min_size.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder that contains uci/, for the UCI data sets.")]


def load(
    data: Path | None,
    target: str | None,
    names: str | None,
    n: int | None,
    n_test: int,
    seed: int,
    data_dir: Path | None,
) -> list[Dataset]:
    """The data sets of one command; warnings of a repaired table are shown as one line."""
    from gp_rangeformer.lab import datasets

    if data is not None and names is not None:
        refuse("DATA.csv and --dataset exclude each other: give one of them")
    if data is None and target is not None:
        refuse("--target names a column of DATA.csv, which is missing: give the file")
    if data is not None and target is None:
        refuse(f"{data} needs --target COLUMN, the column to predict")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if data is not None and target is not None:
            loaded = [datasets.load_csv(data, target, n=n, n_test=n_test, seed=seed)]
        else:
            wanted = [name.strip() for name in (names or "co2").split(",") if name.strip()]
            loaded = [datasets.load(name, n=n, n_test=n_test, seed=seed, data_dir=data_dir) for name in wanted]
    for warning in caught:
        open_console(stderr=True).print(f"Warning: {warning.message}", style="yellow", markup=False, soft_wrap=True)
    return loaded


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
