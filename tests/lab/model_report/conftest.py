"""Models that reports are made of, fitted once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.model_report import render
from gp_rangeformer.regression import TableRegression
from gp_rangeformer.regression.predictions import beside
from tests.lab.model_report.pages import TARGET, mixed_table


@pytest.fixture(scope="session")
def mixed() -> TableRegression:
    with pytest.warns(UserWarning, match="constant"):
        return TableRegression.fit(
            mixed_table(), target=TARGET, kernel="matern32,rbf", encode="one-hot", missing="mean"
        )


@pytest.fixture(scope="session")
def dated() -> TableRegression:
    """The Mauna Loa record's last 110 weeks."""
    data = datasets.load("co2", n=110, n_test=10)
    weeks = pd.date_range("1998-12-05", periods=110, freq="7D")
    y = data.train_y.numpy()[np.argsort(data.train_x[:, 0].numpy())]
    return TableRegression.fit(pd.DataFrame({"week": weeks, "CO2 [ppm]": y}), target="CO2 [ppm]", kernel="matern52")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the robot arm by two of its angles, saved, with rows held out."""
    data = datasets.load("robot_arm", n=110, n_test=10)
    frame = pd.DataFrame(data.train_x.numpy(), columns=pd.Index(data.feature_names))[["theta2", "theta3"]].copy()
    frame[data.target_name] = data.train_y.numpy()
    fitted, held = frame.iloc[:80], frame.iloc[80:]
    model = TableRegression.fit(fitted, target=data.target_name, kernel="rbf")
    path = tmp_path_factory.mktemp("model")
    model.save(path)
    held = held.rename_axis("line")
    beside(model.predict(held), held, data.target_name).to_csv(path / "held_out.csv")
    return path


@pytest.fixture(scope="session")
def page(mixed: TableRegression) -> str:
    return render(mixed)
