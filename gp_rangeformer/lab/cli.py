"""The command line: ``gp-rangeformer compare``, ``fit``, ``bench``, ``info``.

What a command needs is imported inside it; the package's own import, which installs the hooks, takes torch's time.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from gp_rangeformer.lab.bench.command import bench_app
from gp_rangeformer.lab.outputs import Outputs
from gp_rangeformer.version import own_version

if TYPE_CHECKING:
    from gp_rangeformer.lab.compare import Comparison
    from gp_rangeformer.lab.compare.result import SolverResult
    from gp_rangeformer.lab.datasets import Dataset

app = typer.Typer(name="gp-rangeformer", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_FAILED, _INVALID, _INTERRUPTED = 1, 2, 130
_WIDTH_IN_FILES = 120
_ADAM_STEPS, _ADAM_RATE = 60, 0.1  # of `fit`, where Adam trains

_Data = Annotated[Path | None, typer.Argument(metavar="DATA.csv", help="Table with a header line, plain or .gz.")]
_Target = Annotated[str | None, typer.Option(help="Column of DATA.csv to predict.")]
_N = Annotated[int | None, typer.Option(min=2, help="Training rows; all of them, or 2000 from a simulator.")]
_NTest = Annotated[int, typer.Option(min=1, help="At most this many test rows.")]
_Kernel = Annotated[
    str | None,
    typer.Option(
        help="matern32, matern12, matern52, rbf, rq, periodic, linear+rbf, or trend-seasonal for co2.",
        show_default="trend-seasonal for co2, else matern32",
    ),
]
_Steps = Annotated[int, typer.Option(min=1, help="Adam steps.")]
_Lr = Annotated[float, typer.Option(min=0.0, help="Learning rate of Adam.")]
_Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
_Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the data's split and of GPyTorch's probes.")]
_MinSize = Annotated[int | None, typer.Option(min=1, help="n from which RangeFormer answers; else settings.min_size.")]
_DataDir = Annotated[Path | None, typer.Option(help="Folder that contains uci/, for the UCI data sets.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gp-rangeformer {own_version()}")
        raise typer.Exit()


app.add_typer(bench_app, name="bench")


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Certified fast solves and log determinants for GPyTorch, behind one flag."""


@app.command()
def compare(
    context: typer.Context,
    data: _Data = None,
    target: _Target = None,
    dataset: Annotated[
        str | None, typer.Option(help="Names from `info`, separated by commas.", show_default="co2")
    ] = None,
    n: _N = None,
    n_test: _NTest = 1000,
    kernel: _Kernel = None,
    steps: _Steps = 30,
    lr: _Lr = 0.1,
    solvers: Annotated[
        str,
        typer.Option(
            help="exact, cholesky, cg, cg-tight, rangeformer, rangeformer-direct (the network's own answers), "
            "separated by commas; exact and rangeformer take settings, as in rangeformer:rank=200+history=1.",
            show_default="all but the last",
        ),
    ] = "exact,cholesky,cg,cg-tight,rangeformer",
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64.", show_default="float32; float64 for the kernel of co2")
    ] = None,
    device: _Device = "cpu",
    seed: _Seed = 0,
    audit: Annotated[
        int, typer.Option(min=0, help="Check every N-th step with exact float64; 0: the first and the last.")
    ] = 10,
    timing_only: Annotated[str, typer.Option(help="Those of --solvers that run --timing-steps steps only.")] = "",
    timing_steps: Annotated[int, typer.Option(min=1, help="Steps of the solvers in --timing-only.")] = 5,
    reference_check: Annotated[
        bool, typer.Option(help="Check the reference against the other exact path once, in float64.")
    ] = True,
    min_size: _MinSize = None,
    data_dir: _DataDir = None,
    json: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write the figures to this folder.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Train the same GP from the same start with each solver and show where they differ.

    A float64 reference always runs first. Without arguments: the weekly CO2 record of Mauna Loa.
    """
    with _refusing():
        from gp_rangeformer.lab.compare import Options, parse_solvers
        from gp_rangeformer.lab.compare import compare as compare_solvers
        from gp_rangeformer.lab.compare.record import Record
        from gp_rangeformer.lab.compare.tables import tables
        from gp_rangeformer.lab.models import check_kernel, default_dtype

        _check_dtype(dtype or "float32")
        _check_device(device)
        parse_solvers(solvers, dtype or "float32", timing_only, min_size)
        loaded = _load(data, target, dataset, n, n_test, seed, data_dir)
        for each in loaded:
            check_kernel(kernel, each)
    options = Options(kernel, steps, lr, audit, timing_steps, device, seed, reference_check)
    outputs = Outputs()
    record = Record(_command_line(context), context.params, device, json, outputs.write_json)
    console = _console()
    for each in loaded:
        specs = parse_solvers(solvers, dtype or default_dtype(each, kernel), timing_only, min_size)
        with _progress() as show:
            comparison = compare_solvers(each, specs, options, observer=show, save=record.save)
        for grid in tables(comparison):
            console.print(grid.to_rich())
        if plots is not None:
            outputs.write(plots, partial(_write_figures, comparison, plots))
        if comparison.interrupted:
            break
    if markdown is not None:
        outputs.write(markdown, partial(record.write_markdown, markdown))
    _say_written(outputs)
    if record.interrupted:
        console.print("Interrupted; what was done until then is above.", style="yellow")
    outputs.finish()
    if record.interrupted:
        raise typer.Exit(_INTERRUPTED)


@app.command()
def fit(
    data: _Data = None,
    target: _Target = None,
    dataset: Annotated[str | None, typer.Option(help="A name from `info`, instead of DATA.csv.")] = None,
    n: _N = None,
    n_test: _NTest = 1000,
    kernel: _Kernel = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="fit_mll trains to convergence; adam.", show_default="adam with --steps or --lr, else fit_mll"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Adam steps.", show_default="60")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Adam's learning rate.", show_default="0.1")] = None,
    dtype: _Dtype = "float32",
    device: _Device = "cpu",
    seed: _Seed = 0,
    min_size: _MinSize = None,
    data_dir: _DataDir = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write mean, deviation and 95 % interval of every test row to this CSV file.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write every other number to this file.")] = None,
) -> None:
    """Train one GP with the flag on; print its hyperparameters, test errors and the last report."""
    if optimizer not in (None, "adam", "fit_mll"):
        _refuse(f"--optimizer {optimizer!r}: fit_mll or adam")
    by_adam = optimizer == "adam" or (optimizer is None and (steps is not None or lr is not None))
    if not by_adam and (steps is not None or lr is not None):
        _refuse("--steps and --lr belong to --optimizer adam; fit_mll ends by itself")
    adam_steps = (steps or _ADAM_STEPS) if by_adam else None
    with _refusing():
        from gp_rangeformer.lab.compare import parse_solvers
        from gp_rangeformer.lab.compare.fit import fit as fit_model
        from gp_rangeformer.lab.models import check_kernel

        _check_dtype(dtype)
        _check_device(device)
        (spec,) = parse_solvers("rangeformer", dtype, min_size=min_size)
        if data is None and dataset is None:
            _refuse("nothing to fit: give DATA.csv with --target COLUMN, or --dataset NAME")
        found = _load(data, target, dataset, n, n_test, seed, data_dir)
        if len(found) > 1:
            _refuse("fit trains one GP: give one --dataset")
        (loaded,) = found
        check_kernel(kernel, loaded)
    try:
        with _progress() as show:
            rate = _ADAM_RATE if lr is None else lr
            fitted = fit_model(loaded, spec, kernel, steps=adam_steps, lr=rate, device=device, seed=seed, observer=show)
    except KeyboardInterrupt:
        _console(stderr=True).print("Interrupted; nothing was written.", style="yellow")
        raise typer.Exit(_INTERRUPTED) from None
    except (ArithmeticError, RuntimeError) as error:
        _console(stderr=True).print(f"Training failed: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(_FAILED) from None

    console, result = _console(), fitted.result
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
        _console(stderr=True).print(result.error, style="red", markup=False, soft_wrap=True)
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
    _say_written(outputs)
    outputs.finish()
    if result.error is not None:
        raise typer.Exit(_FAILED)


@app.command()
def info(data_dir: _DataDir = None) -> None:
    """Versions, device, threads, data sets, pretrained models, and settings with their defaults."""
    with _refusing():
        import torch

        from gp_rangeformer import settings
        from gp_rangeformer.kernels.native.compiler import describe
        from gp_rangeformer.lab import datasets
        from gp_rangeformer.lab.compare import machine
        from gp_rangeformer.lab.pretrained import describe_pretrained

        names = datasets.available(data_dir)
        shipped = describe_pretrained()
    console = _console()
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in machine.versions().items():
        table.add_row(name, version)
    table.add_row("processor", f"{machine.processor_name()}, {machine.available_cores()} cores")
    table.add_row("torch threads", str(torch.get_num_threads()))
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    table.add_row("CUDA device", accelerator)
    table.add_row("compiled kernels", describe())
    table.add_row("data sets", ", ".join(names))
    table.add_row("pretrained", ", ".join(shipped) or "none: reinstall gp-rangeformer")
    console.print(table)
    for name, lines in shipped.items():
        console.print(f"pretrained {name}", style="bold")
        facts = Table(box=None, show_header=False, pad_edge=False)
        for key, value in lines.items():
            facts.add_row(f"  {key}", value)
        console.print(facts)
    console.print("settings", style="bold")
    values = Table(box=None, show_header=False, pad_edge=False)
    for name, value in settings.current().items():
        if isinstance(value, dict):  # the solver with its arguments
            values.add_row(f"  {name}", str(value.pop("name")))
            for argument, present in value.items():
                values.add_row(f"    {argument}", str(present))
        else:
            values.add_row(f"  {name}", str(value))
    console.print(values)


# --------------------------------------------------------------------------------------------------------------------
# What the user asked for


def _load(
    data: Path | None,
    target: str | None,
    names: str | None,
    n: int | None,
    n_test: int,
    seed: int,
    data_dir: Path | None,
) -> list[Dataset]:
    """The data sets of one command; warnings of a repaired table are shown as one line."""
    from gp_rangeformer.lab import datasets

    if data is not None and names is not None:
        _refuse("DATA.csv and --dataset exclude each other: give one of them")
    if data is None and target is not None:
        _refuse("--target names a column of DATA.csv, which is missing: give the file")
    if data is not None and target is None:
        _refuse(f"{data} needs --target COLUMN, the column to predict")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if data is not None and target is not None:
            loaded = [datasets.load_csv(data, target, n=n, n_test=n_test, seed=seed)]
        else:
            wanted = [name.strip() for name in (names or "co2").split(",") if name.strip()]
            loaded = [datasets.load(name, n=n, n_test=n_test, seed=seed, data_dir=data_dir) for name in wanted]
    for warning in caught:
        _console(stderr=True).print(f"Warning: {warning.message}", style="yellow", markup=False, soft_wrap=True)
    return loaded


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        _refuse(f"no dtype {dtype!r}: float32 or float64")


def _check_device(device: str) -> None:
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        _refuse(f"no device {device!r}: cpu, cuda or cuda:N")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= found:
            _refuse(f"device {device!r}: torch finds {found} CUDA devices here; use --device cpu")


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Errors in what the user asked for become a message and exit code 2."""
    from gp_rangeformer.lab.compare import SolverError
    from gp_rangeformer.lab.datasets import DatasetError
    from gp_rangeformer.lab.models import KernelError

    try:
        yield
    except (DatasetError, KernelError, SolverError) as error:
        _refuse(error)


def _refuse(message: object) -> NoReturn:
    _console(stderr=True).print(f"Error: {message}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(_INVALID)


def _command_line(context: typer.Context) -> str:
    """The command as the user could type it again: what was given, not the defaults."""
    words = ["gp-rangeformer", context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words.extend([parameter.opts[0], str(value)])
    return shlex.join(words)


# --------------------------------------------------------------------------------------------------------------------
# What the user sees


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


def _console(stderr: bool = False) -> Console:
    """A console that keeps 120 columns where there is no terminal to measure."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _WIDTH_IN_FILES, highlight=False)


def _say_written(outputs: Outputs) -> None:
    for path in outputs.written:
        _console().print(f"written: {path}", markup=False, soft_wrap=True)


class _Bars:
    """One progress bar per solver, added when it starts; an observer of comparisons."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, solver: str, done: int, total: int, status: str) -> None:
        if solver not in self._bars:
            self._bars[solver] = self._progress.add_task(solver, total=total, status="")
        self._progress.update(self._bars[solver], completed=done, total=total, status=status)


@contextlib.contextmanager
def _progress() -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console(stderr=True)) as progress:
        yield _Bars(progress)


def _write_figures(comparison: Comparison, folder: Path) -> None:
    from gp_rangeformer.lab.plots import write_figures

    write_figures(comparison, folder)
