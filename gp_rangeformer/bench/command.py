"""``gp-rangeformer bench``: what the plug-in costs and gains, measured on this machine."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(help="Measure the plug-in on this machine.", no_args_is_help=True)

_SETS = "pol,elevators,bike,kin40k,protein,robot_arm,borehole"


@bench_app.command()
def learning(
    dataset: Annotated[str, typer.Option(help="Names from `info`, separated by commas.")] = _SETS,
    sizes: Annotated[str, typer.Option(help="Training rows, separated by commas.")] = "2000,4000,8000",
    seeds: Annotated[str, typer.Option(help="Seeds of data and probes, separated by commas.")] = "0,1,2",
    steps: Annotated[int, typer.Option(min=4, help="Adam steps of the recorded trajectory.")] = 30,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Folder that contains uci/.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write every number to this file; what is in it already is not repeated.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Every learned or tuned part on, replaced by a classical choice, and off: one table.

    One Adam trajectory per data set, size and seed is replayed by all contenders in turn, step by step, so that their
    seconds compare; exact values and gradients are float64.
    """
    from rich.console import Console

    from gp_rangeformer import datasets
    from gp_rangeformer.bench.learning import Cell, grids, measure_cell
    from gp_rangeformer.compare import machine
    from gp_rangeformer.compare.result import write_json, write_text

    try:
        wanted = [
            (int(n), name, int(seed))
            for n in sizes.split(",")
            for name in dataset.split(",")
            for seed in seeds.split(",")
        ]
    except ValueError:
        raise typer.BadParameter("--sizes and --seeds are whole numbers separated by commas") from None
    cells: list[Cell] = []
    if json is not None and json.exists():
        try:
            cells = [Cell.from_json(cell) for cell in json_format.loads(json.read_text())["cells"]]
        except (ValueError, KeyError, TypeError) as error:
            raise typer.BadParameter(
                f"{json} is not a result of this command ({error}): choose another --json"
            ) from None
        cells = [cell for cell in cells if cell.steps == steps]
    console = Console(width=140, highlight=False)
    for n, name, seed in wanted:
        if any((cell.n, cell.data, cell.seed) == (n, name, seed) for cell in cells):
            continue
        try:
            loaded = datasets.load(name, n=n, n_test=1, seed=seed, data_dir=data_dir)
        except datasets.DatasetError as error:
            raise typer.BadParameter(str(error)) from None
        cell = measure_cell(loaded, steps=steps, seed=seed, device=device)
        cells.append(cell)
        summary = cell.outcomes[0].summary()
        console.print(f"{name} n={n} seed={seed}: {summary['seconds']:.3f} s a step", markup=False)
        if json is not None:
            write_json(json, {"machine": machine.describe(device), "cells": [each.to_json() for each in cells]})
    chosen = [cell for cell in cells if (cell.n, cell.data, cell.seed) in wanted]
    tables = grids(chosen, machine.one_line(device))
    for grid in tables:
        console.print(grid.to_rich())
    if markdown is not None:
        write_text(markdown, "\n\n".join(grid.to_markdown() for grid in tables) + "\n")
