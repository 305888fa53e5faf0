"""``gp-rangeformer compare``: the same training by several solvers, and where they differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gp_rangeformer.lab.commands.console import (
    INTERRUPTED,
    command_line,
    open_console,
    refusing,
    show_progress,
)
from gp_rangeformer.lab.commands.options import (
    Data,
    DataDir,
    DayFirst,
    Decimal,
    Device,
    Drop,
    Encode,
    Encoding,
    KernelName,
    MinSize,
    Missing,
    N,
    NTest,
    Rate,
    Seed,
    Sep,
    Sheet,
    Steps,
    Target,
    Thousands,
    check_device,
    check_dtype,
    load,
    table_options,
)
from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    from gp_rangeformer.lab.compare import Comparison


def compare(
    context: typer.Context,
    data: Data = None,
    target: Target = None,
    dataset: Annotated[
        str | None, typer.Option(help="Names from `info`, separated by commas.", show_default="co2")
    ] = None,
    n: N = None,
    n_test: NTest = 1000,
    kernel: KernelName = None,
    sep: Sep = None,
    decimal: Decimal = ".",
    thousands: Thousands = None,
    dayfirst: DayFirst = None,
    encoding: Encoding = "utf-8",
    sheet: Sheet = None,
    drop: Drop = "",
    encode: Encode = "refuse",
    missing: Missing = "drop",
    steps: Steps = 30,
    lr: Rate = 0.1,
    solvers: Annotated[
        str,
        typer.Option(
            help="exact, cholesky, cg, cg-tight, rangeformer, rangeformer-fit (to convergence, by fit_mll), "
            "cholesky-lbfgs (GPyTorch's Cholesky, by L-BFGS), rangeformer-direct (the network's own answers), "
            "separated by commas; exact and rangeformer take settings, as in rangeformer:rank=200+history=1.",
            show_default="all but the last two",
        ),
    ] = "exact,cholesky,cg,cg-tight,rangeformer,rangeformer-fit",
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64.", show_default="float32; float64 for the kernel of co2")
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    audit: Annotated[
        int, typer.Option(min=0, help="Check every N-th step with exact float64; 0: the first and the last.")
    ] = 10,
    timing_only: Annotated[str, typer.Option(help="Those of --solvers that run --timing-steps steps only.")] = "",
    timing_steps: Annotated[int, typer.Option(min=1, help="Steps of the solvers in --timing-only.")] = 5,
    reference_check: Annotated[
        bool, typer.Option(help="Check the reference against the other exact path once, in float64.")
    ] = True,
    min_size: MinSize = None,
    data_dir: DataDir = None,
    json: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write the figures to this folder.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Train the same GP from the same start with each solver, by Adam and to convergence, and show where they differ.

    A float64 reference always runs first. Without arguments: the weekly CO2 record of Mauna Loa.
    """
    outputs = Outputs(json=json, markdown=markdown, plots=plots)
    with refusing():
        from gp_rangeformer.lab.compare import Options, parse_solvers
        from gp_rangeformer.lab.compare import compare as compare_solvers
        from gp_rangeformer.lab.compare.record import Record
        from gp_rangeformer.lab.compare.tables import tables
        from gp_rangeformer.lab.models import check_kernel, default_dtype

        check_dtype(dtype or "float32")
        check_device(device)
        parse_solvers(solvers, dtype or "float32", timing_only, min_size)
        options = table_options(sep, drop, encode, missing, decimal, thousands, dayfirst, encoding, sheet)
        loaded = load(data, target, dataset, n, n_test, seed, data_dir, options)
        for each in loaded:
            check_kernel(kernel, each)
    plan = Options(kernel, steps, lr, audit, timing_steps, device, seed, reference_check)
    record = Record(command_line(context), context.params, device, json, outputs.write_json)
    console = open_console()
    for each in loaded:
        specs = parse_solvers(solvers, dtype or default_dtype(each, kernel), timing_only, min_size)
        with show_progress() as show:
            comparison = compare_solvers(each, specs, plan, observer=show, save=record.save)
        for grid in tables(comparison):
            console.print(grid)
        if plots is not None:
            outputs.write(plots, partial(_write_figures, comparison, plots))
        if comparison.interrupted:
            break
    if markdown is not None:
        outputs.write(markdown, partial(record.write_markdown, markdown))
    outputs.say_written()
    if record.interrupted:
        console.print("Interrupted; what was done until then is above.", style="yellow")
    outputs.finish()
    if record.interrupted:
        raise typer.Exit(INTERRUPTED)


def _write_figures(comparison: Comparison, folder: Path) -> None:
    from gp_rangeformer.lab.plots import write_figures

    write_figures(comparison, folder)
