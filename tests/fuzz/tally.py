"""From records to a table and a file."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gp_rangeformer.atomic import write_bytes

Record = dict[str, Any]
_LEVELS = (0.5, 0.9, 0.95, 0.99, 1.0)
_WORDS = {True: "yes", False: "no", None: "-"}


def write_json(path: Path, content: object) -> None:
    """Readers meet the old file or the new one."""
    write_bytes(path, json.dumps(content).encode())


def is_miss(record: Record) -> bool:
    """Whether something that was promised does not hold."""
    broken = record.get("solve", {}).get("broken", False)
    raised = record.get("exception", {}).get("gpytorch_answers", False)
    return bool(record.get("misses") or broken or raised or record.get("flaws"))


def claims_about_nothing(record: Record) -> bool:
    """Whether a certain interval came for a matrix that is not positive definite, without a word about jitter."""
    indefinite = "smallest_eigenvalue" in record and "mll_interval" in record.get("intervals", {})
    return indefinite and not any("jitter" in note for note in record["notes"])


def _path(record: Record) -> str:
    return f"{record['solver']} {record['reason']}"


def _note(record: Record) -> str:
    short = (re.sub(r"[-+]?\d[\d.e+-]*", "#", note)[:60] for note in record["notes"])
    return "; ".join(short) or "-"


def _quantiles(values: Sequence[float]) -> list[str]:
    if not values:
        return ["-"] * 6
    return [str(len(values)), *(f"{v:.1e}" for v in np.quantile(values, _LEVELS, method="higher"))]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def certain_misses(records: Iterable[Record]) -> Counter[tuple[str, str, str, str]]:
    """(which, path, dtype, note) -> how many."""
    return Counter((which, _path(r), r["dtype"], _note(r)) for r in records for which in r.get("misses", {}))


def coverage(records: Iterable[Record], which: str) -> dict[tuple[str, float, str], list[list[bool]]]:
    """(method, level, dtype) -> per statistical interval: [contains the truth, or is right to 1e-5 nats per point]."""
    found = defaultdict(list)
    for record in records:
        if which in record.get("statistical", {}):
            found[record["method"], record["level"], record["dtype"]].append(record["statistical"][which][:2])
    return dict(sorted(found.items()))


def tables(records: Sequence[Record]) -> list[Table]:
    return [
        _steps(records),
        _certain(records),
        _coverage(records),
        _solves(records),
        _exceptions(records),
        *_errors(records),
    ]


def show(records: Sequence[Record]) -> None:
    console = Console(width=None if Console().is_terminal else 170)
    for table in tables(records):
        console.print(table)


def _steps(records: Sequence[Record]) -> Table:
    table = _table(f"{len(records)} steps", "answered by", "steps", "indefinite A", "certain interval all the same")
    groups = defaultdict(list)
    for record in records:
        groups[_path(record) if "solver" in record else "(raised)"].append(record)
    for path, group in sorted(groups.items()):
        indefinite = sum("smallest_eigenvalue" in r for r in group)
        table.add_row(path, str(len(group)), str(indefinite), str(sum(map(claims_about_nothing, group))))
    return table


def _certain(records: Sequence[Record]) -> Table:
    columns = "interval", "path", "dtype", "note", "misses", "of", "median nats", "largest", "worst recipe"
    table = _table("certain intervals that miss", *columns)
    judged = Counter((_path(r), r["dtype"]) for r in records if "mll_true" in r)
    for (which, path, dtype, note), count in certain_misses(records).most_common():
        group = [
            r
            for r in records
            if which in r.get("misses", {}) and (_path(r), r["dtype"], _note(r)) == (path, dtype, note)
        ]
        worst = max(group, key=lambda r: r["misses"][which])
        sizes = [r["misses"][which] for r in group]
        recipe = f"{worst['trajectory']}:{worst['step']}"
        numbers = f"{np.median(sizes):.2g}", f"{max(sizes):.2g}"
        table.add_row(which, path, dtype, note, str(count), str(judged[path, dtype]), *numbers, recipe)
    return table


def _coverage(records: Sequence[Record]) -> Table:
    columns = "interval", "method", "level", "dtype", "count", "contains", "or right to 1e-5 a point"
    table = _table("statistical intervals", *columns)
    for which in ("logdet", "mll"):
        for (method, level, dtype), found in coverage(records, which).items():
            raw, close = (f"{100 * share:.1f} %" for share in np.mean(found, axis=0))
            table.add_row(which, method, f"{level:.0%}", dtype, str(len(found)), raw, close)
    return table


def _solves(records: Sequence[Record]) -> Table:
    table = _table(
        "residuals that solves certify", "path", "dtype", "solves", "broken", "worst true / claimed", "recipe"
    )
    groups = defaultdict(list)
    for record in records:
        if "solve" in record:
            solve = record["solve"]
            groups[f"{solve['solver']} {solve['reason']}", record["dtype"]].append(record)
    for (path, dtype), group in sorted(groups.items()):
        broken = sum(r["solve"]["broken"] for r in group)
        ratios = [r["solve"]["true"] / max(r["solve"]["claimed"], 1e-13) for r in group]
        worst = group[int(np.argmax(ratios))]
        recipe = f"{worst['trajectory']}:{worst['step']}"
        table.add_row(path, dtype, str(len(group)), str(broken), f"{max(ratios):.3g}", recipe)
    return table


def _exceptions(records: Sequence[Record]) -> Table:
    columns = "what", "GPyTorch answers", "A positive definite", "count", "first recipe"
    table = _table("exceptions and flaws", *columns)
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        if "exception" in record:
            raised = record["exception"]
            message = re.sub(r"[-+]?\d[\d.e+-]*", "#", raised["error"])[:110]
            facts = _WORDS[raised["gpytorch_answers"]], _WORDS[raised["positive_definite"]]
            groups[(f"{raised['operation']}: {message}", *facts)].append(record)
        for flaw in record.get("flaws", ()):
            groups[f"{flaw} ({_path(record) if 'solver' in record else '-'})", "-", "-"].append(record)
    for facts, group in sorted(groups.items()):
        table.add_row(*facts, str(len(group)), f"{group[0]['trajectory']}:{group[0]['step']}")
    return table


def _errors(records: Sequence[Record]) -> list[Table]:
    levels = ["count", *(f"{level:.0%}" for level in _LEVELS[:-1]), "largest"]
    found = []
    for title, key in (
        ("value error, nats per point", "value_error"),
        ("value error, relative to the larger of n and |log p(y)|", "value_error_relative"),
        ("gradient error, relative to the gradient", "gradient_error"),
        ("gradient error, relative to the larger of its two terms", "gradient_error_of_terms"),
        ("gradient error against float64 throughout, relative to the gradient", "gradient_error_exact"),
        ("seconds", "seconds"),
    ):
        table = _table(title, "path", "dtype", *levels, "worst recipe")
        groups = defaultdict(list)
        for record in records:
            if key in record and "solver" in record:
                groups[_path(record), record["dtype"]].append(record)
        for (path, dtype), group in sorted(groups.items()):
            values = [float(np.nan_to_num(r[key], nan=np.inf)) for r in group]
            worst = group[int(np.argmax(values))]
            table.add_row(path, dtype, *_quantiles(values), f"{worst['trajectory']}:{worst['step']}")
        found.append(table)
    return found
