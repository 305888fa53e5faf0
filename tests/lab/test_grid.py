"""Tables on consoles of any width: nothing of a cell is left out."""

from __future__ import annotations

import dataclasses
import re

import pytest
from rich.console import Console

from gp_rangeformer.lab.grid import Grid

WIDTHS = (60, 80, 100, 160)
GRID = Grid(
    "Arrival: a title that is longer than sixty columns are, so that it has to be wrapped somewhere",
    ("solver", *(f"quantity\nnumber {index}" for index in range(10))),
    (
        ("reference", *(f"{1234567 * (index + 1)}" for index in range(10))),
        ("rangeformer\nrank=[40]\ntiming only", *(f"[{index}.125, 9.{index}75]" for index in range(10))),
    ),
    ("a note of [brackets] that are not markup", "another note with a-very-long-word-" + "x" * 70),
)


def printed(grid: Grid, width: int) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    return capture.get()


def tables(text: str) -> list[list[str]]:
    """The lines of every table, its header first."""
    return [part.splitlines() for part in re.split(r"\n\s*\n", text) if "───" in part]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_of_a_grid_has_all_rows_and_every_column_is_in_one_of_them(width: int) -> None:
    text = printed(GRID, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    cells: list[str] = []
    for lines in tables(text):
        (rule,) = [index for index, line in enumerate(lines) if "───" in line]
        assert lines[rule - 1].startswith("solver ")
        body = lines[rule + 1 :]
        assert [line.split()[0] for line in body] == ["reference", "rangeformer", "rank=[40]", "timing"]
        cells += re.findall(r"\d{7,}|\[\d\.125, 9\.\d75\]", "\n".join(body))
    assert sorted(cells) == sorted(cell for row in GRID.rows for cell in row[1:])
    headers = re.findall(r"number (\d)", text)
    assert sorted(headers) == [str(index) for index in range(10)]


def test_a_grid_is_one_table_where_the_console_is_wide_enough() -> None:
    width = max(map(len, printed(GRID, 1000).splitlines()[2:6]))
    assert len(tables(printed(GRID, width))) == 1
    assert len(tables(printed(GRID, width - 1))) == 2


def test_columns_that_say_what_a_row_is_of_are_repeated() -> None:
    grid = Grid("", ("set", "by", "a", "b"), (("kin40k", "LOVE", "1" * 30, "2" * 30),), keys=2)
    first, second = tables(printed(grid, 60))
    for lines, cell in ((first, "1"), (second, "2")):
        assert lines[-1].split() == ["kin40k", "LOVE", cell * 30]


@pytest.mark.parametrize("width", [20, 31])
def test_where_no_column_fits_every_row_is_a_block(width: int) -> None:
    grid = Grid("T", ("solver", "largest", "steps"), (("rangeformer:kernel_storage", "0.12465678", "3" * 40),))
    text = printed(grid, width)
    assert max(map(len, text.splitlines())) <= width
    assert not tables(text)
    together = re.sub(r"\s", "", text)
    for said in ("rangeformer:kernel_storage", "largest", "0.12465678", "steps"):
        assert said in together
    assert together.count("3") == 40


@pytest.mark.parametrize("width", WIDTHS)
def test_notes_and_title_are_whole_and_brackets_are_no_markup(width: int) -> None:
    together = re.sub(r"\s", "", printed(GRID, width))
    for text in (GRID.title, *GRID.notes):
        assert re.sub(r"\s", "", text) in together
    assert re.sub(r"\s", "", printed(dataclasses.replace(GRID, title="", notes=()), width)) in together


def test_markdown_escapes_what_ends_a_cell() -> None:
    assert Grid("T", ("a\nb", "c"), (("1|2", "3"),), ("n", "m")).to_markdown() == (
        "**T**\n\n| a b | c |\n| --- | ---: |\n| 1\\|2 | 3 |\n\nn<br>m"
    )
