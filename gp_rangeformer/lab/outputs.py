"""The files that a command writes. One that cannot be written must not cost the results that were computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

_FAILED = 1


class Outputs:
    """Writes the files of one command as its results come, and says at the end which could not be written."""

    def __init__(self) -> None:
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

    def finish(self) -> None:
        """One line on stderr for every file that could not be written.

        :raises typer.Exit: with code 1, if there is one.
        """
        for error in self._failures.values():
            typer.secho(f"Error: {error}", fg="red", err=True)
        if self._failures:
            raise typer.Exit(_FAILED)
