"""What every command says, where, and with which exit code."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

FAILED, INVALID, INTERRUPTED = 1, 2, 130
_WIDTH_IN_FILES = 120
_SECONDS_BETWEEN_LINES = 60.0
_own_stdout: TextIO | None = None


@contextlib.contextmanager
def stdout_for_consoles() -> Iterator[None]:
    """Only what is printed by :func:`open_console` is on stdout; what other libraries print goes to stderr."""
    global _own_stdout
    before, _own_stdout = _own_stdout, sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _own_stdout = before


@contextlib.contextmanager
def errors_name_options() -> Iterator[None]:
    """What is said of tables names options of the command, not arguments of functions."""
    from gp_rangeformer.regression.errors import naming_options  # with PyTorch, which help does not wait for

    with naming_options():
        yield


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
    """A console that keeps 120 columns where there is no terminal to measure, and escapes what the stream's encoding
    has no letters for, as that of a file on Windows."""
    stream = sys.stderr if stderr else _own_stdout or sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_IN_FILES, highlight=False)


class _Bars:
    """One progress bar per solver, added when it starts; an observer of comparisons."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, solver: str, done: int, total: int, status: str) -> None:
        if solver not in self._bars:
            self._bars[solver] = self._progress.add_task(solver, total=total, status="")
        self._progress.update(self._bars[solver], completed=done, total=total, status=status)


class _Lines:
    """Where there is no terminal: a line when a solver starts, one a minute, and one at its end; an observer too."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._solver = ""
        self._last_line = 0.0  # when it was printed, by time.monotonic
        self._unsaid = ""

    def __call__(self, solver: str, done: int, total: int, status: str) -> None:
        line, now = f"{solver} {done}/{total}" + (f": {status}" if status else ""), time.monotonic()
        if solver != self._solver:
            self.finish()
        elif now - self._last_line < _SECONDS_BETWEEN_LINES:
            self._unsaid = line
            return
        self._solver, self._last_line, self._unsaid = solver, now, ""
        self._console.print(line, markup=False, soft_wrap=True)

    def finish(self) -> None:
        """Where the solver arrived, if that was not said."""
        if self._unsaid:
            self._console.print(self._unsaid, markup=False, soft_wrap=True)
        self._unsaid = ""


@contextlib.contextmanager
def show_progress() -> Iterator[_Bars | _Lines]:
    """An observer that shows on stderr how far each solver is: bars on a terminal, else lines."""
    console = open_console(stderr=True)
    if not console.file.isatty():
        lines = _Lines(console)
        try:
            yield lines
        finally:
            lines.finish()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24 if console.width >= _WIDTH_IN_FILES else 8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", table_column=Column(overflow="fold")),  # not cut off
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


@contextlib.contextmanager
def show_status() -> Iterator[Callable[[str], None]]:
    """What is being done now, on stderr: in one line that changes on a terminal, else in a line each."""
    console = open_console(stderr=True)
    if console.file.isatty():
        with console.status("starting") as status:
            yield status.update
    else:
        yield lambda doing: console.print(doing, markup=False, soft_wrap=True)
