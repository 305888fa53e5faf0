"""The files that a command writes. One that cannot be written must not cost the results that were computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import typer

from gp_rangeformer.lab.commands.console import FAILED, open_console, refuse

_FOLDERS = ("plots", "figures")


class Outputs:
    """Writes the files of one command as its results come, and says at the end which could not be written.

    :param options: where the command was asked to write, by the option's name, before anything is computed for it. A
        folder that is not there yet is made when there is something to write.
    :raises typer.Exit: with code 2, where a file can be said to be impossible now, or two are one.
    """

    def __init__(self, **options: Path | None) -> None:
        named = {f"--{name}": path for name, path in options.items() if path is not None}
        for option, path in named.items():
            check(option, path, of_files=option.removeprefix("--") in _FOLDERS)
        for (option, path), (other, second) in combinations(named.items(), 2):
            if _is_one_file(path, second):
                refuse(f"{option} {path} and {other} {second} are one file: choose another path for one of them")
        self._failures: dict[Path, OSError] = {}
        self._written: list[Path] = []

    @property
    def written(self) -> list[Path]:
        """What is complete, in the order of the first attempts."""
        return [path for path in self._written if path not in self._failures]

    def write(self, path: Path, write: Callable[[], object]) -> bool:
        """Whether ``write`` made the file ``path`` or files in that folder; an OSError is kept for the end."""
        if path not in self._written:
            self._written.append(path)
        try:
            write()
        except OSError as error:
            self._failures[path] = error
            return False
        return True

    def write_json(self, path: Path, content: dict[str, object]) -> None:
        """As :func:`gp_rangeformer.lab.compare.result.write_json`. The whole file again makes up for a failure."""
        from gp_rangeformer.lab.compare.result import write_json

        self._failures.pop(path, None)
        self.write(path, lambda: write_json(path, content))

    def say_written(self) -> None:
        """A line for every file that is there."""
        for path in self.written:
            open_console().print(f"written: {path}", markup=False, soft_wrap=True)

    def finish(self) -> None:
        """One line on stderr for every file that could not be written.

        :raises typer.Exit: with code 1, if there is one.
        """
        for error in self._failures.values():
            open_console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        if self._failures:
            raise typer.Exit(FAILED)


def _is_one_file(path: Path, other: Path) -> bool:
    """A device or a pipe takes what both write."""
    if path.exists() and other.exists():
        return path.is_file() and path.samefile(other)
    return path.resolve() == other.resolve()


def check(option: str, path: Path, of_files: bool = False) -> None:
    """Refuse a path at which no file, or no folder ``of_files``, can be written."""
    # os.path, whose questions are answered where a folder may not be looked into.
    if os.path.exists(path) and os.path.isdir(path) != of_files:
        what, remedy = ("a file", "name a folder") if of_files else ("a folder", "name a file in it")
        refuse(f"{option} {path} is {what}: {remedy}")
    nearest = path.absolute()
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if nearest != path.absolute() and not os.path.isdir(nearest):
        refuse(f"{option} {path}: {nearest} is no folder: choose another path")
    if not os.access(nearest, os.W_OK):
        refuse(f"{option} {path} cannot be written: choose a path that you may write to")
