"""Small data sets: tables, and the sentence of the guide."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from gp_rangeformer.lab.bench.small import Cell, Timing
from gp_rangeformer.lab.bench.small_tables import accuracy_grid, seconds_grid
from gp_rangeformer.lab.bench.small_tasks import FITS, TASKS, Plan
from gp_rangeformer.lab.guide.__main__ import ROOT
from gp_rangeformer.lab.guide.measured import small_sentence
from gp_rangeformer.lab.guide.results import Results

PLAN = Plan(dimensions=6, dtype="float64", seed=0, repetitions=2, threads=1)
WITHOUT_FIT = [name for name in TASKS if name not in FITS]


def timing(host: list[float], flag: list[float]) -> Timing:
    return Timing(host, flag, dict.fromkeys(("loss", "gradient", "mean", "variance"), 1e-12), ["exact"])


def test_tables_have_a_row_per_cell_and_fit_into_the_console() -> None:
    slow = timing([0.8765, 0.9876, 0.9], [1.2345, 1.3456, 1.4])
    with_fit = {name: slow for name in TASKS}
    with_fit |= dict.fromkeys(FITS, replace(timing([12.345], [54.321]), evaluations=[120, 123]))
    without = {name: slow for name in WITHOUT_FIT}
    cells = [Cell(1000, 1, with_fit, [12.0, 3.0], 0.0123456), Cell(1000, 16, without, [None, None])]
    console = Console(width=170, highlight=False)
    for grid, fitted in (
        (seconds_grid(cells, PLAN), ["12345, 54321", "0.23"]),
        (accuracy_grid(cells), ["1e-12", "120, 123"]),
    ):
        assert [row[0] for row in grid.rows] == ["1000, 1", "1000, 16"]
        assert all(len(row) == len(grid.headers) for row in grid.rows)
        assert list(grid.rows[0][-2:]) == fitted
        assert grid.rows[1][-2:] == ("-", "-")
        with console.capture() as capture:
            console.print(grid)
        for row in grid.rows:
            assert any(all(part in line for part in row) for line in capture.get().splitlines())
    assert seconds_grid(cells, PLAN).rows[0][1:4] == ("12.3", "900, 1346", "0.67 (0.66-0.73)")
    assert seconds_grid(cells, PLAN).rows[1][1] == "-"


def test_how_far_fits_of_this_package_end_from_the_hosts_is_in_the_table() -> None:
    fits = {"fit": timing([9.0], [9.0]), "fit by fit_mll": replace(timing([9.0], [1.0]), evaluations=[79, 8])}
    fits["fit by fit_mll"].differences["loss"] = 3e-4
    table = accuracy_grid([Cell(500, 1, {**{name: timing([0.1], [0.1]) for name in WITHOUT_FIT}, **fits}, [None] * 2)])
    assert table.headers[-2:] == ("loss after fit by fit_mll", "evaluations")
    assert table.rows[0][-2:] == ("3e-04", "79, 8")


def test_the_sentence_is_the_worst_of_steps_predictions_and_batches() -> None:
    def cell(n: int, batch: int, step: float, prediction: float) -> Cell:
        tasks = {"step": timing([1.0], [step]), "prediction": timing([1.0], [prediction])}
        return Cell(n, batch, tasks, [None, None])

    results = Results(ROOT)
    cells = [cell(100, 1, 1.05, 1.1), cell(100, 16, 1.0, 1.25), cell(500, 1, 0.5, 3.0)]
    results.__dict__["small"] = (PLAN, cells)
    assert small_sentence(results) == (
        "Steps, predictions and batches of up to n = 100 take with the flag at worst 1.25 times as long as without "
        "(a prediction at n = 100, 16 in a batch). Beyond, a step by GPyTorch's Cholesky takes so many times as long: "
        "2.0 at n = 500 (float64)."
    )


def test_without_a_fit_there_is_no_column_for_it() -> None:
    cells = [Cell(10, 1, {name: timing([0.1], [0.05]) for name in WITHOUT_FIT}, [1.0, 1.0])]
    for grid in (seconds_grid(cells, PLAN), accuracy_grid(cells)):
        assert "fit" not in grid.to_markdown()
        assert all(len(row) == len(grid.headers) for row in grid.rows)
    assert "| 10, 1 | 100, 50.0 | 2.00 |" in seconds_grid(cells, PLAN).to_markdown()
