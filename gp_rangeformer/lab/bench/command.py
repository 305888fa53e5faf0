"""``gp-rangeformer bench``: what the plug-in costs and gains, measured on this machine.

The package itself is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gp_rangeformer.lab.bench.fits_command import fits
from gp_rangeformer.lab.bench.predictions_command import predictions
from gp_rangeformer.lab.bench.robust_command import robust
from gp_rangeformer.lab.bench.sklearn_command import sklearn
from gp_rangeformer.lab.commands.console import open_console, show_status, stdout_for_consoles
from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    from gp_rangeformer.lab.grid import Grid

bench_app = typer.Typer(invoke_without_command=True)
for command in (fits, predictions, robust, sklearn):
    bench_app.command()(stdout_for_consoles()(command))

_SET = "One name from `info`; robot_arm, borehole and co2 come with the package."
_SETS = "pol,elevators,bike,kin40k,protein,robot_arm,borehole"
_AUDIT_LARGEST = {"cpu": 8000, "cuda": 16000}


@bench_app.callback()
@stdout_for_consoles()
def peers(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(help=_SET)] = "kin40k",
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

    _check_dtype(dtype)
    _check_device(device)
    plan = Plan(dataset, kernel, solvers, steps, seed, dtype, device, at)
    if audit_largest is None:
        audit_largest = _AUDIT_LARGEST[device.partition(":")[0]]
    console, outputs = open_console(), Outputs()
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
    _write_markdown(outputs, markdown, [*(size_table(size, plan) for size in measured), growth])
    if figures is not None:
        from gp_rangeformer.lab.bench.peer_figures import write_peer_figures

        outputs.write(figures, partial(write_peer_figures, measured, plan, figures))
    outputs.finish()


def _write_markdown(outputs: Outputs, path: Path | None, grids: Sequence[Grid]) -> None:
    """The tables, where a file for them was asked for."""
    if path is not None:
        from gp_rangeformer.lab.compare.result import write_text

        text = "\n\n".join(grid.to_markdown() for grid in grids) + "\n"
        outputs.write(path, partial(write_text, path, text))


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        raise typer.BadParameter(f"no dtype {dtype!r}: float32 or float64")


def _check_device(device: str) -> None:
    import torch

    try:
        if torch.device(device).type not in _AUDIT_LARGEST:
            raise RuntimeError("cpu, cuda or cuda:N")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"no device {device!r}: {str(error).splitlines()[0]}") from None


@bench_app.command()
@stdout_for_consoles()
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
    console, outputs = open_console(), Outputs()
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
    _write_markdown(outputs, markdown, tables)
    outputs.finish()


@bench_app.command()
@stdout_for_consoles()
def products(
    sizes: Annotated[str, typer.Option(help="Points, separated by commas.")] = "2000,4000,8000",
    dimensions: Annotated[int, typer.Option(min=1, help="Of the points; fewer make a smoother matrix.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """One product with K and 33 columns: dense in several precisions, recomputed, and what a step would take."""
    from gp_rangeformer.lab.bench.peer_run import parse_sizes
    from gp_rangeformer.lab.bench.products import measure_products, products_grid, to_json
    from gp_rangeformer.lab.bench.resumed import PlanError
    from gp_rangeformer.lab.compare import machine

    _check_device(device)
    try:
        wanted = parse_sizes(sizes)
    except PlanError as error:
        raise typer.BadParameter(str(error)) from None
    console, outputs = open_console(), Outputs()
    measured = {n: measure_products(n, dimensions=dimensions, device=device) for n in wanted}
    where = f"{dimensions} dimensions; {machine.one_line(device)}"
    tables = [products_grid(n, found, where) for n, found in measured.items()]
    for grid in tables:
        console.print(grid)
    if json is not None:
        cells = [to_json(n, found) for n, found in measured.items()]
        outputs.write_json(json, {"machine": machine.describe(device), "sizes": cells})
    _write_markdown(outputs, markdown, tables)
    outputs.finish()


@bench_app.command()
@stdout_for_consoles()
def stages(
    dataset: Annotated[str, typer.Option(help=_SET)] = "kin40k",
    kernel: Annotated[
        str | None, typer.Option(help="As in `compare`.", show_default="the data set's default, matern32 for most")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Training rows, separated by commas.")] = "2000,4000,8000,16000",
    steps: Annotated[int, typer.Option(min=4, help="Adam steps; the first three are not counted.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and probes.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Folder that contains uci/.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
) -> None:
    """Where the seconds of a training step go, and how fast products with K are beside the library's fastest."""
    from dataclasses import asdict

    from gp_rangeformer.lab import datasets
    from gp_rangeformer.lab.bench.contenders import Problem, UnavailableError
    from gp_rangeformer.lab.bench.peer_run import parse_sizes
    from gp_rangeformer.lab.bench.resumed import PlanError
    from gp_rangeformer.lab.bench.stages import measure_stages, stages_grid
    from gp_rangeformer.lab.compare import machine
    from gp_rangeformer.lab.models import KernelError, check_kernel, default_kernel

    _check_dtype(dtype)
    _check_device(device)
    found = []
    try:
        for n in parse_sizes(sizes):
            loaded = datasets.load(dataset, n=n, n_test=1, seed=seed, data_dir=data_dir)
            check_kernel(kernel, loaded)
            problem = Problem(loaded, kernel or default_kernel(loaded), dtype, device)
            found.append(measure_stages(problem, steps=steps, seed=seed))
    except (PlanError, UnavailableError, datasets.DatasetError, KernelError) as error:
        raise typer.BadParameter(str(error)) from None
    grid = stages_grid(found, f"{dataset}, {dtype}, seed {seed}, {steps} Adam steps; {machine.one_line(device)}")
    open_console().print(grid)
    outputs = Outputs()
    if json is not None:
        outputs.write_json(json, {"machine": machine.describe(device), "sizes": [asdict(size) for size in found]})
    _write_markdown(outputs, markdown, [grid])
    outputs.finish()


@bench_app.command()
@stdout_for_consoles()
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

    _check_dtype(dtype)
    plan = Plan(dimensions, dtype, seed, repetitions, torch.get_num_threads())
    console, outputs = open_console(), Outputs()
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
    _write_markdown(outputs, markdown, grids)
    outputs.finish()
