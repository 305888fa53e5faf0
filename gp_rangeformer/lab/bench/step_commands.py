"""``gp-rangeformer bench products`` and ``stages``: what one training step is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.bench.arguments import A_SET, write_markdown
from gp_rangeformer.lab.commands.console import open_console
from gp_rangeformer.lab.commands.options import check_device, check_dtype
from gp_rangeformer.lab.outputs import Outputs


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

    check_device(device)
    try:
        wanted = parse_sizes(sizes)
    except PlanError as error:
        raise typer.BadParameter(str(error)) from None
    console, outputs = open_console(), Outputs(json=json, markdown=markdown)
    measured = {n: measure_products(n, dimensions=dimensions, device=device) for n in wanted}
    where = f"{dimensions} dimensions; {machine.one_line(device)}"
    tables = [products_grid(n, found, where) for n, found in measured.items()]
    for grid in tables:
        console.print(grid)
    if json is not None:
        cells = [to_json(n, found) for n, found in measured.items()]
        outputs.write_json(json, {"machine": machine.describe(device), "sizes": cells})
    write_markdown(outputs, markdown, tables)
    outputs.finish()


def stages(
    dataset: Annotated[str, typer.Option(help=A_SET)] = "kin40k",
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

    check_dtype(dtype)
    check_device(device)
    outputs = Outputs(json=json, markdown=markdown)
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
    if json is not None:
        outputs.write_json(json, {"machine": machine.describe(device), "sizes": [asdict(size) for size in found]})
    write_markdown(outputs, markdown, [grid])
    outputs.finish()
