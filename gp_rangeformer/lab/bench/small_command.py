"""``gp-rangeformer bench small``: steps, predictions and fits of small data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.bench.arguments import write_markdown
from gp_rangeformer.lab.commands.console import open_console, show_status
from gp_rangeformer.lab.commands.options import check_dtype
from gp_rangeformer.lab.outputs import Outputs


def small(
    sizes: Annotated[str, typer.Option(help="Training rows, separated by commas.")] = "20,50,100,200,500,1000",
    batches: Annotated[
        str, typer.Option(help="Models in one, separated by commas; 1 is one without a batch.")
    ] = "1,4,16",
    dimensions: Annotated[int, typer.Option(min=1, help="Of the inputs, each with a length-scale.")] = 6,
    repetitions: Annotated[int, typer.Option(min=1, help="Of every figure, at most; see --patience.")] = 50,
    patience: Annotated[
        float,
        typer.Option(
            min=0.0, help="Seconds after which a figure has enough repetitions: three at least, one of a fit."
        ),
    ] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and hyperparameters.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    json: Annotated[
        Path | None, typer.Option(help="Write every number to this file; what is in it already is not repeated.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Steps, predictions and BoTorch's fits of small data sets, with the flag off and on: how many times faster.

    GPyTorch runs with the settings that BoTorch gives it, Cholesky at every n. Both take turns, at the same
    hyperparameters, so that their seconds compare. Fits are of single models, and left out where BoTorch is missing.
    """
    import torch

    from gp_rangeformer.lab.bench.resumed import PlanError
    from gp_rangeformer.lab.bench.small import parse_counts, run
    from gp_rangeformer.lab.bench.small_tables import accuracy_grid, one_line, seconds_grid
    from gp_rangeformer.lab.bench.small_tasks import Plan

    check_dtype(dtype)
    plan = Plan(dimensions, dtype, seed, repetitions, torch.get_num_threads())
    console, outputs = open_console(), Outputs(json=json, markdown=markdown)
    try:
        with show_status() as show_doing:
            cells = run(
                plan,
                parse_counts(sizes, "--sizes", smallest=2),
                parse_counts(batches, "--batches", smallest=1),
                patience=patience,
                path=json,
                write=outputs.write_json,
                observer=show_doing,
                show=lambda cell: console.print(one_line(cell), markup=False),
            )
    except PlanError as error:
        raise typer.BadParameter(str(error)) from None
    grids = seconds_grid(cells, plan), accuracy_grid(cells)
    for grid in grids:
        console.print(grid)
    write_markdown(outputs, markdown, grids)
    outputs.finish()
