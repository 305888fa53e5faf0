"""``gp-rangeformer bench learning``: what every learned or tuned part buys."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.bench.arguments import write_markdown
from gp_rangeformer.lab.commands.console import open_console
from gp_rangeformer.lab.outputs import Outputs

_SETS = "pol,elevators,bike,kin40k,protein,robot_arm,borehole"


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
    from gp_rangeformer.lab import datasets
    from gp_rangeformer.lab.bench.learning import Cell, grids, measure_cell
    from gp_rangeformer.lab.compare import machine

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
    if json is not None and json.is_file():
        try:
            cells = [Cell.from_json(cell) for cell in json_format.loads(json.read_text())["cells"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise typer.BadParameter(
                f"{json} is not a result of this command ({error}): choose another --json"
            ) from None
    console, outputs = open_console(), Outputs(json=json, markdown=markdown)
    # What the file holds besides, of other steps or an earlier version's contenders, stays in it.
    chosen = [cell for cell in cells if cell.steps == steps and cell.complete]
    for n, name, seed in wanted:
        if any((cell.n, cell.data, cell.seed) == (n, name, seed) for cell in chosen):
            continue
        try:
            loaded = datasets.load(name, n=n, n_test=1, seed=seed, data_dir=data_dir)
        except datasets.DatasetError as error:
            raise typer.BadParameter(str(error)) from None
        cell = measure_cell(loaded, steps=steps, seed=seed, device=device)
        cells.append(cell)
        chosen.append(cell)
        summary = cell.outcomes[0].summary()
        console.print(f"{name} n={n} seed={seed}: {summary['seconds']:.3f} s a step", markup=False)
        if json is not None:
            outputs.write_json(json, {"machine": machine.describe(device), "cells": [each.to_json() for each in cells]})
    tables = grids([cell for cell in chosen if (cell.n, cell.data, cell.seed) in wanted], machine.one_line(device))
    for grid in tables:
        console.print(grid)
    write_markdown(outputs, markdown, tables)
    outputs.finish()
