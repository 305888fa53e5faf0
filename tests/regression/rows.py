"""A table of mixed columns, and fits of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gp_rangeformer.regression import TableRegression

N = 60


def table() -> Any:
    """Rows in units far from standard: y = 1000 + 50 (sin 2 a + [city is Oslo]) and noise; b matters not."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "a": 300 + 20 * rng.normal(size=N), "b": 1e-3 * rng.normal(size=N), "city": ["Oslo", "Rome", "Bonn"] * (N // 3),
        "when": pd.date_range("2024-01-31", periods=N, tz="UTC"), "flag": rng.random(N) > 0.5,
    }, index=[f"r{i}" for i in range(N)])  # fmt: skip
    signal = np.sin((frame["a"] - 300) / 10) + (frame["city"] == "Oslo")
    return frame.assign(y=1000 + 50 * signal + 5 * rng.normal(size=N))


def fit(frame: Any, **options: Any) -> Any:
    return TableRegression.fit(frame, **options)
