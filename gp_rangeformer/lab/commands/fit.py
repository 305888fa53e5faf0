"""``gp-rangeformer fit``: one GP trained with the flag on, and kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gp_rangeformer.lab.commands.console import (
    FAILED,
    INTERRUPTED,
    open_console,
    refuse,
    refusing,
    show_progress,
)
from gp_rangeformer.lab.commands.fit_folder import (
    check_former,
    description,
    interrupted,
    keep,
    keep_report,
    last_kept,
    prepare,
)
from gp_rangeformer.lab.commands.fit_printed import print_fit
from gp_rangeformer.lab.commands.options import (
    DEFAULT_KERNEL,
    Data,
    DataDir,
    DayFirst,
    Decimal,
    Device,
    Drop,
    Encode,
    Encoding,
    MinSize,
    Missing,
    N,
    NTest,
    Seed,
    Sep,
    Sheet,
    Target,
    Thousands,
    check_device,
    check_dtype,
    check_output,
    load,
    saying_warnings,
    table_options,
)
from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    from gp_rangeformer.lab.datasets import Dataset, Split, TableOptions

_ADAM_STEPS, _ADAM_RATE = 60, 0.1  # where Adam trains


def fit(
    context: typer.Context,
    data: Data = None,
    target: Target = None,
    dataset: Annotated[str | None, typer.Option(help="A name from `info`, instead of DATA.csv.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep the model in this folder: for `predict` and `report`, and to go on after Ctrl-C."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="A model in that folder may be of another target or other columns.")
    ] = False,
    n: N = None,
    n_test: NTest = 1000,
    kernel: Annotated[
        str | None,
        typer.Option(
            help="matern12, matern32, matern52, rbf, rq, periodic, linear, trend-seasonal (of dates); a sum, as in "
            "linear+rbf; several to compare, as in rbf,matern32; auto compares the first five.",
            show_default=DEFAULT_KERNEL,
        ),
    ] = None,
    sep: Sep = None,
    decimal: Decimal = ".",
    thousands: Thousands = None,
    dayfirst: DayFirst = None,
    encoding: Encoding = "utf-8",
    sheet: Sheet = None,
    drop: Drop = "",
    encode: Encode = "refuse",
    missing: Missing = "drop",
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="fit_mll trains to convergence; adam.", show_default="adam with --steps or --lr, else fit_mll"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Adam steps.", show_default="60")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Adam's learning rate.", show_default="0.1")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32 or float64.", show_default="float64 to 5,000 rows, else float32"),
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    min_size: MinSize = None,
    data_dir: DataDir = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write mean, deviation and 95 % interval of every test row to this CSV file.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write every other number to this file.")] = None,
) -> None:
    """Train one GP with the flag on; print what it found, and keep the model.

    A tenth of a table's rows, drawn at random, is held out: they are predicted, and not trained on.
    """
    if optimizer not in (None, "adam", "fit_mll"):
        refuse(f"--optimizer {optimizer!r}: fit_mll or adam")
    by_adam = optimizer == "adam" or (optimizer is None and (steps is not None or lr is not None))
    if not by_adam and (steps is not None or lr is not None):
        refuse("--steps and --lr belong to --optimizer adam; fit_mll ends by itself")
    if by_adam and out is not None:
        refuse("--out keeps a converged model: leave out --optimizer adam, --steps and --lr")
    if replace and out is None:
        refuse("--replace is about the model in a folder: name it with --out")
    with refusing():
        from gp_rangeformer.lab import datasets
        from gp_rangeformer.lab.compare import parse_solvers
        from gp_rangeformer.lab.compare.fit import fit as fit_model
        from gp_rangeformer.lab.compare.fit import fit_by_adam
        from gp_rangeformer.regression import KernelError, TableError
        from gp_rangeformer.regression.choice import kernel_names
        from gp_rangeformer.regression.kernels import default_dtype

        options = table_options(sep, drop, encode, missing, decimal, thousands, dayfirst, encoding, sheet)
        if kernel is not None:
            kernel_names(kernel)
        check_dtype(dtype or "float32")
        check_device(device)
        outputs = _outputs(context, out, predictions, json, data)
        loaded, split = _load(data, target, dataset, n, n_test, seed, data_dir, options)
        names = _kernels(kernel, loaded, by_adam)
        if by_adam and loaded is None:
            with saying_warnings():
                loaded = datasets.dataset_of(split, options.missing)
        start = _start(names, loaded)
        (spec,) = parse_solvers("rangeformer", dtype or default_dtype(names[0], len(split.train)), min_size=min_size)
        model_before = description(out)
        if out is not None:
            with saying_warnings():
                check_former(out, split, options, replace)
    kept_before = last_kept(out)
    try:
        with show_progress() as show, saying_warnings():
            if by_adam and loaded is not None:
                fitted = fit_by_adam(
                    loaded,
                    split,
                    spec,
                    names[0],
                    steps=steps or _ADAM_STEPS,
                    lr=_ADAM_RATE if lr is None else lr,
                    device=device,
                    seed=seed,
                    observer=show,
                )
            else:
                fitted = fit_model(split, spec, start, options, device=device, seed=seed, folder=out, observer=show)
    except (TableError, KernelError) as error:
        refuse(f"{split.name}: {error}")
    except KeyboardInterrupt:
        open_console(stderr=True).print(interrupted(out, kept_before), style="yellow", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except (ArithmeticError, RuntimeError) as error:
        open_console(stderr=True).print(f"Training failed: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None

    kept = None
    if out is not None and fitted.model is not None:
        # First: who reads what is printed may go away (``| head``), which must not cost the training.
        with saying_warnings():
            kept = keep(fitted, out, model_before, outputs, fitted.to_json(spec, seed, device))
    print_fit(fitted)
    if predictions is not None and fitted.predictions is not None:
        outputs.write(predictions, partial(fitted.write_predictions, predictions))
    if json is not None:
        outputs.write_json(json, fitted.to_json(spec, seed, device))
    if kept is not None:
        keep_report(fitted, kept, outputs)
    outputs.say_written()
    outputs.finish()
    if fitted.result.error is not None:
        raise typer.Exit(FAILED)


def _outputs(
    context: typer.Context, out: Path | None, predictions: Path | None, json: Path | None, data: Path | None
) -> Outputs:
    """After all of them are known to be possible."""
    if out is not None:
        prepare(context, out)
    check_output("--predictions", predictions, data, out)
    check_output("--json", json, data, out)
    return Outputs(predictions=predictions, json=json)


def _load(
    data: Path | None,
    target: str | None,
    dataset: str | None,
    n: int | None,
    n_test: int,
    seed: int,
    data_dir: Path | None,
    options: TableOptions,
) -> tuple[Dataset | None, Split]:
    """The named data set, if it is one, and its rows or those of the table."""
    from gp_rangeformer.lab import datasets

    if data is None and dataset is None:
        refuse("nothing to fit: give DATA.csv with --target COLUMN, or --dataset NAME")
    if data is not None and target is not None and dataset is None:
        with saying_warnings():
            return None, datasets.load_split(data, target, n=n, n_test=n_test, seed=seed, options=options)
    if options != datasets.TableOptions():
        refuse("--sep, --drop, --encode, --missing and the like say how DATA.csv is read: give the file")
    found = load(data, target, dataset, n, n_test, seed, data_dir)
    if len(found) > 1:
        refuse("fit trains one GP: give one --dataset")
    return found[0], datasets.split_of(found[0])


def _kernels(kernel: str | None, dataset: Dataset | None, by_adam: bool) -> tuple[str, ...]:
    """The names that ``--kernel`` asks for, which can be built for a named data set."""
    from gp_rangeformer.lab.models import check_kernel, default_kernel
    from gp_rangeformer.regression.choice import kernel_names

    names = kernel_names(kernel or default_kernel(dataset))
    if dataset is not None:
        for name in names:
            check_kernel(name, dataset)
    if by_adam and len(names) > 1:
        refuse("kernels are compared by fits to convergence: leave out --optimizer adam, --steps and --lr")
    return names


def _start(names: tuple[str, ...], dataset: Dataset | None) -> Any:
    """What :meth:`TableRegression.fit` takes: the co2 record counts in years, and knows how long one is."""
    from gp_rangeformer.lab.models import TREND_SEASONAL, covariance

    if dataset is not None and names == (TREND_SEASONAL,):
        return covariance(dataset, TREND_SEASONAL)
    return ",".join(names)
