"""Errors of a trained model on matrices of its own distribution, of others, of other sizes, and of Matrix Market."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from torch import Tensor

from pretrain.baselines.read_out import SOLVE
from pretrain.experiments.interventions.ladder import LADDER, Model, Rung
from pretrain.experiments.interventions.problems import DISTRIBUTIONS, Distribution, Problems, draw, errors
from pretrain.matrices import list_matrices, load

_CHUNK = 64
_WORST = 1e12  # the error of an answer that is not finite; infinities have no mean and no place in JSON
HELD_OUT = ("identity", "diagonal", "toeplitz")
COLUMNS = (
    "in distribution",
    "other size",
    "larger size",
    "other distribution",
    "held out",
    "Matrix Market, n <= 20",
    "Matrix Market",
)


@dataclass(frozen=True)
class Protocol:
    """The test matrices, the same for all rungs and seeds.

    Of the default sizes, 10 is a training size of every rung, 20 of the row models.
    """

    count: int = 256  # matrices per distribution, size and task
    sizes: tuple[int, ...] = (8, 10, 13, 20, 30, 50, 100)
    home: int = 10  # the size of "in distribution" and of the changes of distribution
    other: tuple[int, ...] = (8, 13)  # "other size"
    larger: tuple[int, ...] = (50,)
    loops: int = 8
    more_loops: int = 16  # at the sizes ``home`` and ``loop_size``, and on Matrix Market
    loop_size: int = 30
    largest_market: int = 1000
    seed: int = 2025


@dataclass
class Cell:
    """Test matrices of one distribution and size."""

    distribution: Distribution
    size: int
    problems: Problems


def cells(tasks: tuple[str, ...], protocol: Protocol) -> list[Cell]:
    """Every distribution at every size; each has its own seed, so that adding one leaves the others as they are."""
    return [
        Cell(distribution, size, draw(distribution, tasks, protocol.count, size, _generator(protocol, index, size)))
        for index, distribution in enumerate(DISTRIBUTIONS)
        for size in protocol.sizes
    ]


def market(tasks: tuple[str, ...], folder: Path | None, protocol: Protocol) -> dict[str, Problems]:
    """One problem per Matrix Market file, as it is, by name; none without a folder."""
    problems = {}
    for path in list_matrices(folder, protocol.largest_market) if folder is not None else []:
        matrix = load(path).unsqueeze(0)
        solve = tasks == (SOLVE,)
        name = path.name.split(".")[0]
        problems[name] = (
            Problems.of_solve(matrix, _generator(protocol, len(problems), matrix.shape[-1]))
            if solve
            else Problems.of_scalars(matrix)
        )
    return problems


def evaluate(
    model: Model, tests: Sequence[Cell], files: dict[str, Problems], protocol: Protocol
) -> list[dict[str, Any]]:
    """One record per task and cell or file: median and mean error after every loop, or "does not fit"."""
    records = []
    for cell in tests:
        many = cell.size in (protocol.home, protocol.loop_size)
        loops = protocol.more_loops if many else protocol.loops
        place = {"distribution": cell.distribution, "n": cell.size}
        records.extend({**place, **record} for record in _measure(model, cell.problems, loops, protocol.seed))
    for name, problems in files.items():
        place = {"distribution": "market", "matrix": name, "n": problems.matrices.shape[-1]}
        records.extend({**place, **record} for record in _measure(model, problems, protocol.more_loops, protocol.seed))
    return records


@torch.no_grad()
def _measure(model: Model, problems: Problems, loops: int, seed: int) -> list[dict[str, Any]]:
    tasks = model.config.tasks
    if not model.fits(problems.matrices.shape[-1]):
        return [{"task": task, "fits": False} for task in tasks]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[list[Tensor]]] = {task: [] for task in tasks}
    for part in problems.split(_CHUNK):
        answers = model(part.matrices, part.rhs, loops=loops if model.looped else None, generator=generator)
        for task in tasks:
            found[task].append([errors(task, answer[task], part) for answer in answers])
    records = []
    for task, parts in found.items():
        each = [torch.cat(loop).nan_to_num(nan=_WORST, posinf=_WORST) for loop in zip(*parts, strict=True)]
        records.append(
            {
                "task": task,
                "fits": True,
                "median": [float(loop.median()) for loop in each],
                "mean": [float(loop.mean()) for loop in each],
            }
        )
    return records


def headline(record: dict[str, Any], rung: Rung, depth: int) -> float:
    """The median error at the depth of training: no number of loops is chosen by looking at the tests."""
    return record["median"][depth - 1 if rung.looped else 0]


def summarise(results: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, dict[str, dict[str, Any]]]:
    """rung -> task -> column -> mean and spread over seeds of the error, and how many cells or files it covers.

    The error of a column is the mean of its cells' medians, for Matrix Market the median over files. Spread is the
    standard deviation over seeds, None for one seed.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        rung = LADDER[result["rung"]]
        for task in result["tasks"]:
            records = [record for record in result["errors"] if record["task"] == task and record["fits"]]
            columns = summary.setdefault(result["rung"], {}).setdefault(task, {column: {} for column in COLUMNS})
            for column in COLUMNS:
                values = [
                    headline(record, rung, result["depth"])
                    for record in records
                    if _belongs(record, column, rung, protocol)
                ]
                if values:
                    value = median(values) if column.startswith("Matrix Market") else fmean(values)
                    columns[column].setdefault("seeds", []).append(value)
                    columns[column]["covers"] = len(values)
    for tasks in summary.values():
        for columns in tasks.values():
            for entry in columns.values():
                if entry:
                    entry["mean"] = fmean(entry["seeds"])
                    entry["spread"] = stdev(entry["seeds"]) if len(entry["seeds"]) > 1 else None
    return summary


def _belongs(record: dict[str, Any], column: str, rung: Rung, protocol: Protocol) -> bool:
    distribution, size = record["distribution"], record["n"]
    own, home = distribution == rung.data, size == protocol.home
    trained_on = distribution in ("gaussian", "structured")
    return {
        "in distribution": own and home,
        "other size": own and size in protocol.other,
        "larger size": own and size in protocol.larger,
        "other distribution": trained_on and not own and home,
        "held out": distribution in HELD_OUT and home,
        "Matrix Market, n <= 20": distribution == "market" and size <= 20,
        "Matrix Market": distribution == "market",
    }[column]


def _generator(protocol: Protocol, index: int, size: int) -> torch.Generator:
    return torch.Generator().manual_seed(100_000 * protocol.seed + 10_000 * index + size)
