"""``gp-rangeformer bench fits``: whole fits, by every way to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.commands.console import open_console, show_status
from gp_rangeformer.lab.outputs import Outputs


@dataclass(frozen=True)
class FitPlan:
    """What decides the numbers of a run."""

    kernel: str | None
    contenders: tuple[str, ...]
    dtype: str
    seed: int
    patience: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "contenders", tuple(self.contenders))  # a list in a file


def fits(
    dataset: Annotated[str, typer.Option(help="Names from `info`, separated by commas.")] = (
        "kin40k,pol,protein,bike,elevators"
    ),
    kernel: Annotated[
        str | None, typer.Option(help="As in `compare`.", show_default="the data set's default, matern32 for most")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Training rows, separated by commas.")] = "2000",
    contenders: Annotated[
        str | None, typer.Option(help="Their names, separated by semicolons.", show_default="all")
    ] = None,
    patience: Annotated[float, typer.Option(min=1.0, help="Seconds after which a fit is stopped.")] = 300.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    data_dir: Annotated[Path | None, typer.Option(help="Folder that contains uci/.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write every number to this file; what is in it already is not repeated.")
    ] = None,
) -> None:
    """Seconds until a fit is within 0.1 to 0.001 nats per point of the optimum: the plug-in's, Adam, L-BFGS, on the
    plug-in's solvers and on GPyTorch's. Exact float64 values judge, outside every timing. Adam has two rates where the
    first leaves time for the other, and the better counts; what takes less than ten seconds runs three times."""
    import torch

    from gp_rangeformer.lab import datasets
    from gp_rangeformer.lab.bench.fit_contenders import CONTENDERS
    from gp_rangeformer.lab.bench.fit_tables import grid
    from gp_rangeformer.lab.bench.fits import FitCell, measure, warm_up
    from gp_rangeformer.lab.bench.peer_run import parse_sizes
    from gp_rangeformer.lab.bench.resumed import PlanError, measure_parts
    from gp_rangeformer.lab.compare import machine
    from gp_rangeformer.lab.models import KernelError, check_kernel, default_kernel

    if dtype not in ("float32", "float64"):
        raise typer.BadParameter(f"--dtype {dtype!r}: float32 or float64")
    names = tuple(CONTENDERS) if contenders is None else tuple(name.strip() for name in contenders.split(";"))
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise typer.BadParameter(f"--contenders {unknown[0]!r}: {'; '.join(CONTENDERS)}")
    plan, outputs, console = FitPlan(kernel, names, dtype, seed, patience), Outputs(json=json), open_console()

    def one(key: tuple[str, int]) -> FitCell:
        name, n = key
        loaded = datasets.load(name, n=n, n_test=1, seed=seed, data_dir=data_dir)
        check_kernel(kernel, loaded)
        warm_up()
        used = kernel or default_kernel(loaded)
        with show_status() as show_doing:
            return measure(loaded, used, names, dtype=getattr(torch, dtype), patience=patience, observer=show_doing)

    try:
        cells = measure_parts(
            json,
            plan,
            FitCell,
            [(name, n) for name in dataset.split(",") for n in parse_sizes(sizes)],
            one,
            write=outputs.write_json,
            show=lambda cell: console.print(grid([cell], "", patience)),
        )
    except (PlanError, datasets.DatasetError, KernelError) as error:
        raise typer.BadParameter(str(error)) from None
    console.print(grid(cells, f"{dtype}, seed {seed}; {machine.one_line('cpu')}", patience))
    outputs.finish()
