"""``gp-rangeformer bench robust``: fits of data of many kinds and from many starts, beside BoTorch's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.commands.console import open_console, show_status
from gp_rangeformer.lab.outputs import Outputs


@dataclass(frozen=True)
class RobustPlan:
    """What decides the numbers of a run."""

    seed: int


def robust(
    sets: Annotated[
        str | None, typer.Option(help="Kinds of data, separated by commas.", show_default="all twenty")
    ] = None,
    largest: Annotated[int, typer.Option(min=10, help="Training rows of a set, at most.")] = 3000,
    restarts: Annotated[int, typer.Option(min=0, help="Random starts, over five small sets.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data.")] = 0,
    json: Annotated[
        Path | None, typer.Option(help="Write every number to this file; what is in it already is not repeated.")
    ] = None,
) -> None:
    """BoTorch's own fit of its SingleTaskGP, and fit_mll with the flag on, of the same data from the same start: whose
    likelihood is higher, what each raises and warns of, evaluations and seconds. Exact float64 values judge."""
    from gp_rangeformer.lab.bench.resumed import PlanError, measure_parts
    from gp_rangeformer.lab.bench.robust import Case, RobustCell, cases, measure, warm_up
    from gp_rangeformer.lab.bench.robust_sets import KINDS
    from gp_rangeformer.lab.bench.robust_tables import cells_grid, one_line, summary_grid
    from gp_rangeformer.lab.bench.small_tasks import has_botorch
    from gp_rangeformer.lab.compare import machine

    names = list(KINDS) if sets is None else [name.strip() for name in sets.split(",")]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise typer.BadParameter(f"--sets {unknown[0]!r}: {', '.join(KINDS)}")
    if not has_botorch():
        raise typer.BadParameter("BoTorch is not installed: pip install 'gp-rangeformer[botorch]'")
    outputs, console = Outputs(json=json), open_console()
    warm_up()

    def one(case: Case) -> RobustCell:
        with show_status() as show_doing:
            show_doing(f"{case[0]}, n = {case[1]:,}, start {case[2]}")
            return measure(case, seed)

    try:
        cells = measure_parts(
            json,
            RobustPlan(seed),
            RobustCell,
            cases(names, largest, restarts),
            one,
            write=outputs.write_json,
            show=lambda cell: console.print(one_line(cell), markup=False),
        )
    except PlanError as error:
        raise typer.BadParameter(str(error)) from None
    note = f"seed {seed}; {machine.one_line()}"
    for grid in (cells_grid(cells), summary_grid(cells, note)):
        console.print(grid)
    outputs.finish()
