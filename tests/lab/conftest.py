"""Files and settings that tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench import stages
from gp_rangeformer.lab.compare import Comparison, Options, compare, parse_solvers
from tests.lab.comparisons import SOLVERS, STEPS, arm
from tests.lab.tables import bike_rows, write_uci


@pytest.fixture(autouse=True)
def small_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's fastest rate is measured on matrices of 256 rows: of 4096 it takes seconds, and shows no more."""
    monkeypatch.setattr(stages, "_SQUARE", 256)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """200 rows: y = sin(3 a) + b / 2, with a missing value in one row."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(200, 2, generator=generator)
    y = (3 * x[:, 0]).sin() + 0.5 * x[:, 1] + 0.05 * torch.randn(200, generator=generator)
    rows = [f"{a:.6f},{b:.6f},{t:.6f}" for (a, b), t in zip(x.tolist(), y.tolist(), strict=True)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,y", *rows, "0.5,,1.0"]) + "\n")
    return path


@pytest.fixture
def no_folder(monkeypatch):
    monkeypatch.delenv(datasets.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "_BESIDE_CHECKOUT", Path("no such folder"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder whose bike is `bike_rows`."""
    write_uci(tmp_path, "bike", bike_rows())
    (tmp_path / "uci" / "manifest.csv").write_text(
        "name,n,d,origin_repo,y\nbike,20,17,someone/somewhere@1,log count; LEAK\nabsent,9,1,a/b@1,y\n"
    )
    return tmp_path


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """robot_arm, n = 500, every step audited, RangeFormer answering instead of the exact path."""
    return compare(arm(), parse_solvers(SOLVERS, min_size=300), Options(steps=STEPS, audit_every=1))
