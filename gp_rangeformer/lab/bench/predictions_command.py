"""``gp-rangeformer bench predictions``: what follows a fit, by everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.bench.arguments import write_markdown
from gp_rangeformer.lab.commands.console import open_console, show_status
from gp_rangeformer.lab.commands.options import check_dtype
from gp_rangeformer.lab.outputs import Outputs


def predictions(
    dataset: Annotated[
        str,
        typer.Option("--dataset", "--sets", help="Of kin40k, pol, protein, bike, elevators, separated by commas."),
    ] = "kin40k,protein",
    sizes: Annotated[str, typer.Option("--sizes", "--n", help="Training rows, separated by commas.")] = "4000,8000",
    t: Annotated[int, typer.Option("--t", min=2, help="Test points.")] = 10_000,
    few: Annotated[int, typer.Option(min=1, help="Test points of the second number of them.")] = 1000,
    wide: Annotated[
        int, typer.Option(min=4, help="Test points of the model of 100 training points, and a quarter of them.")
    ] = 65_536,
    paths: Annotated[int, typer.Option(min=1, help="Functions that are drawn from each posterior.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data and of the paths' evaluation points.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64; gpflash and scikit-learn: float64.")] = "float32",
    data_dir: Annotated[Path | None, typer.Option(help="Folder that contains uci/.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json", "--output", help="Write every number to this file; what is in it already is not repeated."
        ),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Means and variances, functions, leave-one-out scores and further observations of fitted models: seconds, memory
    and errors of the plug-in, GPyTorch, BoTorch, gpflash and scikit-learn.

    Hyperparameters are those of converged fits (matern32). First calls are of fresh models. GPyTorch is given 1,000
    points at a time. Who needs more memory than
    is free, or fails, is recorded with the reason.
    """
    import torch

    from gp_rangeformer.lab.bench.peer_run import parse_sizes
    from gp_rangeformer.lab.bench.prediction_contenders import BLOCK
    from gp_rangeformer.lab.bench.prediction_further import Further
    from gp_rangeformer.lab.bench.prediction_tables import (
        further_grid,
        left_out_grid,
        paths_grid,
        predictions_grid,
        small_grid,
    )
    from gp_rangeformer.lab.bench.predictions import Cell, Plan, run
    from gp_rangeformer.lab.bench.resumed import PlanError
    from gp_rangeformer.lab.compare import machine
    from gp_rangeformer.lab.datasets import DatasetError

    check_dtype(dtype)
    console, outputs = open_console(), Outputs(json=json, markdown=markdown)
    where = machine.one_line()
    try:
        plan = Plan(t, few, wide, paths, dtype, seed, torch.get_num_threads(), BLOCK)

        def show(part: Cell | Further) -> None:
            if isinstance(part, Further):
                console.print(further_grid([part], plan, where))
            else:
                grid = predictions_grid if part.left_out is not None else small_grid
                console.print(grid([part], plan, where))

        with show_status() as show_doing:
            cells, small, further = run(
                plan,
                [name.strip() for name in dataset.split(",")],
                parse_sizes(sizes),
                path=json,
                write=outputs.write_json,
                data_dir=data_dir,
                observer=show_doing,
                show=show,
            )
    except (PlanError, DatasetError) as error:
        raise typer.BadParameter(str(error)) from None
    grids = [grid(cells, plan, where) for grid in (predictions_grid, paths_grid, left_out_grid)]
    grids.insert(1, small_grid(small, plan, where))
    grids.append(further_grid(further, plan, where))
    for grid in grids:
        console.print(grid)
    write_markdown(outputs, markdown, grids)
    outputs.finish()
