"""The weekly Mauna Loa CO2 record that ships with the package."""

from __future__ import annotations

import csv
import io
from datetime import date
from importlib import resources

import torch

from gp_rangeformer.lab.datasets.dataset import Dataset, standardise, subset


def load_co2(n: int | None, n_test: int, generator: torch.Generator) -> Dataset:
    text = (
        resources.files("gp_rangeformer.lab.datasets")
        .joinpath("data")
        .joinpath("co2_weekly.csv")
        .read_text(encoding="utf-8")
    )
    weeks = [(_decimal_year(row["date"]), float(row["co2"])) for row in csv.DictReader(io.StringIO(text))]
    years, ppm = torch.tensor(weeks, dtype=torch.float64).T
    past = len(ppm) - min(n_test, len(ppm) // 5)
    train = torch.arange(past)
    if n is not None:
        train = subset("co2", train, n, generator).sort().values
    train, test = (years[train, None], ppm[train]), (years[past:, None], ppm[past:])
    source = "Keeling & Whorf (2004), Scripps Institution of Oceanography: weekly CO2 at Mauna Loa, public domain"
    return standardise("co2", train, test, ("decimal_year",), "co2_ppm", source, torch.arange(past, len(weeks)) + 1)


def _decimal_year(iso: str) -> float:
    day = date.fromisoformat(iso)
    start, end = date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return day.year + (day - start).days / (end - start).days
