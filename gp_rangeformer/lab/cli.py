"""The command line, ``gp-rangeformer``: which commands there are."""

from __future__ import annotations

from typing import Annotated

import typer

from gp_rangeformer.lab.bench.command import bench_app
from gp_rangeformer.lab.commands.compare import compare
from gp_rangeformer.lab.commands.console import errors_name_options, stdout_for_consoles
from gp_rangeformer.lab.commands.fit import fit
from gp_rangeformer.lab.commands.info import info
from gp_rangeformer.lab.commands.predict import predict
from gp_rangeformer.lab.commands.report import report
from gp_rangeformer.version import own_version

app = typer.Typer(name="gp-rangeformer", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (compare, fit, predict, report, info):
    app.command()(stdout_for_consoles()(errors_name_options()(command)))
app.add_typer(bench_app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gp-rangeformer {own_version()}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Certified fast solves and log determinants for GPyTorch, behind one flag."""
