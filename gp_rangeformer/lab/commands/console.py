"""What every command says, where, and with which exit code."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gp_rangeformer.lab.outputs import Outputs

FAILED, INVALID, INTERRUPTED = 1, 2, 130
_WIDTH_IN_FILES = 120


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Errors in what the user asked for become a message and exit code 2."""
    from gp_rangeformer.lab.compare import SolverError
    from gp_rangeformer.lab.datasets import DatasetError
    from gp_rangeformer.lab.models import KernelError

    try:
        yield
    except (DatasetError, KernelError, SolverError) as error:
        refuse(error)


def refuse(message: object) -> NoReturn:
    open_console(stderr=True).print(f"Error: {message}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(INVALID)


def command_line(context: typer.Context) -> str:
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


def open_console(stderr: bool = False) -> Console:
    """A console that keeps 120 columns where there is no terminal to measure."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _WIDTH_IN_FILES, highlight=False)


def say_written(outputs: Outputs) -> None:
    for path in outputs.written:
        open_console().print(f"written: {path}", markup=False, soft_wrap=True)


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
def show_progress() -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=open_console(stderr=True)) as progress:
        yield _Bars(progress)
