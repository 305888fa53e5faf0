"""``gp-rangeformer fit``: one GP trained with the flag on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gp_rangeformer.lab.commands.console import (
    FAILED,
    INTERRUPTED,
    open_console,
    refuse,
    refusing,
    say_written,
    show_progress,
)
from gp_rangeformer.lab.commands.options import (
    Data,
    DataDir,
    Device,
    Dtype,
    KernelName,
    MinSize,
    N,
    NTest,
    Seed,
    Target,
    check_device,
    check_dtype,
    load,
)
from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    from gp_rangeformer.lab.compare.result import SolverResult

_ADAM_STEPS, _ADAM_RATE = 60, 0.1  # where Adam trains


def fit(
    data: Data = None,
    target: Target = None,
    dataset: Annotated[str | None, typer.Option(help="A name from `info`, instead of DATA.csv.")] = None,
    n: N = None,
    n_test: NTest = 1000,
    kernel: KernelName = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="fit_mll trains to convergence; adam.", show_default="adam with --steps or --lr, else fit_mll"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Adam steps.", show_default="60")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Adam's learning rate.", show_default="0.1")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    seed: Seed = 0,
    min_size: MinSize = None,
    data_dir: DataDir = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write mean, deviation and 95 % interval of every test row to this CSV file.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write every other number to this file.")] = None,
) -> None:
    """Train one GP with the flag on; print its hyperparameters, test errors and the last report."""
    if optimizer not in (None, "adam", "fit_mll"):
        refuse(f"--optimizer {optimizer!r}: fit_mll or adam")
    by_adam = optimizer == "adam" or (optimizer is None and (steps is not None or lr is not None))
    if not by_adam and (steps is not None or lr is not None):
        refuse("--steps and --lr belong to --optimizer adam; fit_mll ends by itself")
    adam_steps = (steps or _ADAM_STEPS) if by_adam else None
    with refusing():
        from gp_rangeformer.lab.compare import parse_solvers
        from gp_rangeformer.lab.compare.fit import fit as fit_model
        from gp_rangeformer.lab.models import check_kernel

        check_dtype(dtype)
        check_device(device)
        (spec,) = parse_solvers("rangeformer", dtype, min_size=min_size)
        if data is None and dataset is None:
            refuse("nothing to fit: give DATA.csv with --target COLUMN, or --dataset NAME")
        found = load(data, target, dataset, n, n_test, seed, data_dir)
        if len(found) > 1:
            refuse("fit trains one GP: give one --dataset")
        (loaded,) = found
        check_kernel(kernel, loaded)
    try:
        with show_progress() as show:
            rate = _ADAM_RATE if lr is None else lr
            fitted = fit_model(loaded, spec, kernel, steps=adam_steps, lr=rate, device=device, seed=seed, observer=show)
    except KeyboardInterrupt:
        open_console(stderr=True).print("Interrupted; nothing was written.", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    except (ArithmeticError, RuntimeError) as error:
        open_console(stderr=True).print(f"Training failed: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None

    console, result = open_console(), fitted.result
    console.print(f"{loaded.source}: {len(loaded.train_y)} training, {len(loaded.test_y)} test rows", markup=False)
    table = Table("hyperparameter", "value (standardised units)", box=None, pad_edge=False)
    for name, value in fitted.hyperparameters.items():
        table.add_row(escape(name), f"{value:.5g}")
    console.print(table)
    if result.error is None:
        rmse = (result.rmse or 0.0) * loaded.target_scale
        console.print(
            f"test RMSE {result.rmse:.4f} standardised, {rmse:.5g} in {loaded.target_name}; test NLL {result.nll:.4f}"
        )
    else:
        open_console(stderr=True).print(result.error, style="red", markup=False, soft_wrap=True)
    if fitted.left_out is not None:
        console.print(fitted.left_out.summary(), markup=False, soft_wrap=True)
    console.print(_cost_line(result), soft_wrap=True)
    if result.fallbacks or result.declined:
        console.print(f"steps that fell back: {result.fallbacks}; left to GPyTorch: {sum(result.declined.values())}")
    if fitted.fit is not None:
        console.print(fitted.fit.summary(), markup=False)
    if fitted.report is not None:
        console.print(fitted.report.summary(), markup=False)
    outputs = Outputs()
    if predictions is not None and result.error is None:
        outputs.write(predictions, partial(fitted.write_predictions, predictions))
    if json is not None:
        outputs.write_json(json, fitted.to_json(spec, seed, device))
    say_written(outputs)
    outputs.finish()
    if result.error is not None:
        raise typer.Exit(FAILED)


def _cost_line(result: SolverResult) -> str:
    """Seconds, passes and memory of one training, as far as they are known."""
    summary = result.summary()
    median, total, passes = summary["seconds_per_step"], summary["seconds_total"], summary["passes_per_step"]
    parts = []
    if median is not None:
        parts.append(f"{median:.3f} s/step (median), {passes:.1f} passes over K")
    if total is not None:
        parts.append(f"training {total:.1f} s, prediction {result.prediction_seconds or 0:.1f} s")
    if result.peak_memory is not None:
        memory = f"peak memory {result.peak_memory:.0f} MiB"
        if result.peak_memory_with_prediction is not None:
            memory += f", with the prediction {result.peak_memory_with_prediction:.0f} MiB"
        parts.append(f"{memory}, beside what was held before")
    return "; ".join(parts)
