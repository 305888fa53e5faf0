"""The result file of one command: where it ran, what was asked, and every comparison so far."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gp_rangeformer import settings
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import FORMAT, Comparison, plain, write_json, write_text
from gp_rangeformer.lab.compare.tables import markdown


@dataclass
class Record:
    """Collects comparisons and writes them after every solver, so that an interrupted command leaves what it has.

    :param command: the command line, as the user could repeat it.
    :param arguments: every option with its value, defaults too.
    :param path: the JSON file; None writes nothing.
    :param write: writes it.
    """

    command: str
    arguments: Mapping[str, object]
    device: str = "cpu"
    path: Path | None = None
    write: Callable[[Path, dict[str, object]], object] = write_json
    comparisons: list[Comparison] = field(default_factory=list)
    started: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )

    @property
    def interrupted(self) -> bool:
        return any(comparison.interrupted for comparison in self.comparisons)

    def save(self, comparison: Comparison) -> None:
        """Add ``comparison`` if it is new, and write the file atomically."""
        if not any(other is comparison for other in self.comparisons):
            self.comparisons.append(comparison)
        if self.path is not None:
            self.write(self.path, self.to_json())

    def to_json(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "command": self.command,
            "started": self.started,
            "machine": machine.describe(self.device),
            "arguments": plain(dict(self.arguments)),
            "settings": plain(settings.current()),
            "interrupted": self.interrupted,
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }

    def write_markdown(self, path: Path) -> None:
        """The tables of all comparisons, each with a caption that says how to get them again."""
        where = machine.one_line(self.device)
        write_text(path, "\n".join(markdown(comparison, where, self.command) for comparison in self.comparisons))
