"""Files of data sets, written for a test."""

import csv
import gzip
from pathlib import Path


def bike_rows() -> list[list]:
    """20 rows x 17 columns: column j of row i is 100 i + j, the target is i, every fifth row is a test row."""
    return [[100 * i + j for j in range(17)] + [i, int(i % 5 == 4)] for i in range(20)]


def write_uci(folder: Path, name: str, rows: list[list], header: list[str] | None = None) -> None:
    (folder / "uci").mkdir(exist_ok=True)
    header = header or [*(f"x{j}" for j in range(len(rows[0]) - 2)), "y", "is_test"]
    with gzip.open(folder / "uci" / f"{name}.csv.gz", "wt") as lines:
        csv.writer(lines, lineterminator="\n").writerows([header, *rows])


def write(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def table(rows: int = 20, header: str = "a,b,y") -> list[str]:
    """Lines whose columns identify the row: a = i, b = -i, y = i^2."""
    return [header, *(f"{i},{-i},{i * i}" for i in range(rows))]
