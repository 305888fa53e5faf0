"""A table of text: for consoles of any width, and as GitHub markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """One header and one cell per column.

    A rich console prints it whole where it is wide enough; else in several tables of fewer columns below one another;
    and where even the narrowest of them is too wide, row by row. No character of a cell is ever left out.

    :param keys: how many columns at the left say what a row is of: every one of those tables begins with them.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    keys: int = 1

    def to_markdown(self, *, titled: bool = True) -> str:
        """A GitHub table, ``titled`` under its title; a pipe inside a cell is escaped."""
        lines = [*([f"**{self.title}**", ""] if titled else []), _line(self.headers)]
        lines.append("|" + "|".join([" --- ", *[" ---: "] * (len(self.headers) - 1)]) + "|")
        lines.extend(_line(row) for row in self.rows)
        if self.notes:
            lines.extend(["", "<br>".join(self.notes)])
        return "\n".join(lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, style="bold")
        groups = self._groups(console, options)
        for part in map(self._table, groups) if groups else self._blocks():
            yield Text()
            yield part
        yield Text()
        if self.notes:
            yield Text("\n".join([*self.notes, ""]), style="dim")

    def _groups(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """The columns of every table, beside the keys; none where not even one column fits."""
        groups: list[list[int]] = []
        for column in range(self.keys, len(self.headers)):
            if groups and self._fits([*groups[-1], column], console, options):
                groups[-1].append(column)
            elif self._fits([column], console, options):
                groups.append([column])
            else:
                return []
        return groups

    def _fits(self, columns: list[int], console: Console, options: ConsoleOptions) -> bool:
        # Measured without a limit: within one a table is as wide as that, and what it would leave out is not counted.
        unlimited = options.update(max_width=2**16)
        return Measurement.get(console, unlimited, self._table(columns)).maximum <= options.max_width

    def _table(self, columns: list[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        shown = [*range(self.keys), *columns]
        for column in shown:
            table.add_column(
                Text(self.headers[column]), justify="left" if column < self.keys else "right", no_wrap=True
            )
        for row in self.rows:
            # Text, as brackets in names are not markup.
            table.add_row(*(Text(row[column]) for column in shown), style=_style(row))
        return table

    def _blocks(self) -> Iterator[RenderableType]:
        for row in self.rows:
            facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
            facts.add_column(overflow="fold")
            facts.add_column(overflow="fold")
            for header, cell in zip(self.headers[self.keys :], row[self.keys :], strict=True):
                facts.add_row(Text(_flat(header)), Text(_flat(cell)), style=_style(row))
            yield Group(Text(_flat(", ".join(row[: self.keys])), style="bold"), facts)


def _style(row: Sequence[str]) -> str | None:
    return "dim" if row[0].startswith("reference") else None


def _flat(cell: str) -> str:
    return cell.replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_flat(cell).replace("|", "\\|") for cell in cells) + " |"
