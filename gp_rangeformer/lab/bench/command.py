"""``gp-rangeformer bench``: what the plug-in costs and gains, measured on this machine.

The package itself is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.bench.arguments import A_SET, write_markdown
from gp_rangeformer.lab.bench.fits_command import fits
from gp_rangeformer.lab.bench.learning_command import learning
from gp_rangeformer.lab.bench.predictions_command import predictions
from gp_rangeformer.lab.bench.robust_command import robust
from gp_rangeformer.lab.bench.sklearn_command import sklearn
from gp_rangeformer.lab.bench.small_command import small
from gp_rangeformer.lab.bench.step_commands import products, stages
from gp_rangeformer.lab.commands.console import open_console, show_status, stdout_for_consoles
from gp_rangeformer.lab.commands.options import check_device, check_dtype
from gp_rangeformer.lab.outputs import Outputs

bench_app = typer.Typer(invoke_without_command=True)
for command in (learning, products, stages, small, fits, predictions, robust, sklearn):
    bench_app.command()(stdout_for_consoles()(command))

_AUDIT_LARGEST = {"cpu": 8000, "cuda": 16000}


@bench_app.callback()
@stdout_for_consoles()
def peers(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(help=A_SET)] = "kin40k",
    kernel: Annotated[
        str | None, typer.Option(help="As in `compare`.", show_default="the data set's default, matern32 for most")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Training rows, separated by commas.")] = "1000,2000,4000,8000",
    solvers: Annotated[
        str, typer.Option(help="As in `compare`, and gpflash, keops; what is not installed is left out.")
    ] = "cholesky,cg,cg-tight,gpflash,keops,exact,rangeformer",
    at: Annotated[
        str,
        typer.Option(help="start, or optimum: where a fit with matern32 ends (kin40k, pol, protein, bike, elevators)."),
    ] = "start",
    steps: Annotated[int, typer.Option(min=4, help="Adam steps of the recorded trajectory.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and probes.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64; gpflash is float64 in any case.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    audit_largest: Annotated[
        int | None,
        typer.Option(min=0, help="Largest n with exact float64 errors.", show_default="8000, 16000 on a GPU"),
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0.0, help="Seconds; a contender whose step takes longer, or is foreseen to, is out.")
    ] = 60.0,
    keep_memory: Annotated[
        bool,
        typer.Option(
            "--keep-memory",
            help="Every contender with a malloc that gives nothing back to the system (glibc); peaks are left out.",
        ),
    ] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that contains uci/.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write every number to this file; a size that is in it already is not repeated.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Write the figures to this folder.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Seconds, errors and memory of one training step: GPyTorch, gpflash, KeOps, this plug-in, and the floor.

    One Adam trajectory per size, taken with the plug-in, is replayed by all contenders in turn, step by step, so that
    their seconds compare. The floor is one evaluation of K and one contraction of its gradient.
    """
    if context.invoked_subcommand is not None:
        return
    from gp_rangeformer.lab.bench.peer_run import Plan, parse_sizes, run
    from gp_rangeformer.lab.bench.peer_tables import growth_table, size_table
    from gp_rangeformer.lab.bench.resumed import PlanError
    from gp_rangeformer.lab.compare.solvers import SolverError
    from gp_rangeformer.lab.datasets import DatasetError
    from gp_rangeformer.lab.models import KernelError

    check_dtype(dtype)
    check_device(device)
    plan = Plan(dataset, kernel, solvers, steps, seed, dtype, device, at, keep_memory)
    if audit_largest is None:
        audit_largest = _AUDIT_LARGEST[device.partition(":")[0]]
    console, outputs = open_console(), Outputs(json=json, markdown=markdown, figures=figures)
    try:
        with show_status() as show_doing:
            measured = run(
                plan,
                parse_sizes(sizes),
                patience=patience,
                audit_largest=audit_largest,
                path=json,
                write=outputs.write_json,
                data_dir=data_dir,
                observer=show_doing,
                show=lambda size: console.print(size_table(size, plan)),
            )
    except (PlanError, DatasetError, KernelError, SolverError) as error:
        raise typer.BadParameter(str(error)) from None
    growth = growth_table(measured, plan)
    console.print(growth)
    write_markdown(outputs, markdown, [*(size_table(size, plan) for size in measured), growth])
    if figures is not None:
        from gp_rangeformer.lab.bench.peer_figures import write_peer_figures

        outputs.write(figures, partial(write_peer_figures, measured, plan, figures))
    outputs.finish()
