"""``gp-rangeformer bench sklearn``: the estimator beside scikit-learn's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gp_rangeformer.lab.commands.console import open_console, show_status
from gp_rangeformer.lab.outputs import Outputs


@dataclass(frozen=True)
class EstimatorPlan:
    """What decides the numbers of a run."""

    t: int
    seed: int
    patience: float


def sklearn(
    dataset: Annotated[
        str, typer.Option(help="Names from `info`, separated by commas; simulators come with the package.")
    ] = "robot_arm,borehole",
    sizes: Annotated[str, typer.Option(help="Training rows, separated by commas.")] = "500,2000",
    t: Annotated[int, typer.Option("--t", min=1, help="Test points.")] = 1000,
    patience: Annotated[
        float, typer.Option(min=1.0, help="Seconds after which scikit-learn's fit is stopped.")
    ] = 900.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that contains uci/.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write every number to this file; what is in it already is not repeated.")
    ] = None,
) -> None:
    """One evaluation, one fit and one prediction of RangeFormerRegressor and of GaussianProcessRegressor: float64, one
    kernel (variance, Matern-3/2 with a length scale per column, noise), one start."""
    from gp_rangeformer.lab import datasets
    from gp_rangeformer.lab.bench.estimator_cell import EstimatorCell
    from gp_rangeformer.lab.bench.estimator_tables import grid
    from gp_rangeformer.lab.bench.peer_run import parse_sizes
    from gp_rangeformer.lab.bench.resumed import PlanError, measure_parts
    from gp_rangeformer.lab.compare import machine

    try:
        from gp_rangeformer.lab.bench.estimators import measure, warm_up
    except ImportError as error:
        raise typer.BadParameter(f"{error}: pip install 'gp-rangeformer[sklearn]'") from None
    plan, outputs, console = EstimatorPlan(t, seed, patience), Outputs(json=json), open_console()

    def one(key: tuple[str, int]) -> EstimatorCell:
        name, n = key
        loaded = datasets.load(name, n=n, n_test=t, seed=seed, data_dir=data_dir)
        warm_up()
        with show_status() as show_doing:
            return measure(loaded, patience=patience, observer=show_doing)

    try:
        cells = measure_parts(
            json,
            plan,
            EstimatorCell,
            [(name, n) for name in dataset.split(",") for n in parse_sizes(sizes)],
            one,
            write=outputs.write_json,
            show=lambda cell: console.print(grid([cell], "")),
        )
    except (PlanError, datasets.DatasetError) as error:
        raise typer.BadParameter(str(error)) from None
    console.print(grid(cells, f"float64, seed {seed}; {machine.one_line('cpu')}"))
    outputs.finish()
