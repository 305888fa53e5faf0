"""Three of scikit-learn's public examples, written anew: the estimator in the place of GaussianProcessRegressor."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, DotProduct, ExpSineSquared, Matern, RationalQuadratic, WhiteKernel

from gp_rangeformer.sklearn import RangeFormerRegressor
from gp_rangeformer.sklearn.optimum import TOLERANCE

Gpr: Any = GaussianProcessRegressor


def swapped(kernel: Any, x: np.ndarray, y: np.ndarray, **options: Any) -> tuple[Any, Any]:
    """Both fitted, of which ours is at least as likely, but for what a fit may leave to gain."""
    theirs = Gpr(kernel, **options).fit(x, y)
    ours = RangeFormerRegressor(kernel, **options).fit(x, y)
    assert ours.log_marginal_likelihood_value_ >= theirs.log_marginal_likelihood_value_ - len(x) * TOLERANCE
    return ours, theirs


def test_the_co2_forecast() -> None:
    file = resources.files("gp_rangeformer.lab.datasets").joinpath("data", "co2_weekly.csv")
    with file.open() as opened:
        record = pd.read_csv(opened, parse_dates=["date"], index_col="date")
    quarterly = record["co2"].resample("QS").mean().dropna()[-100:]
    dates = pd.DatetimeIndex(quarterly.index)
    x, y = (dates.year + dates.month / 12).to_numpy()[:, None], quarterly.to_numpy()
    mean = y.mean()
    kernel = (
        50.0**2 * RBF(50.0)
        + 2.0**2 * RBF(100.0) * ExpSineSquared(1.0, 1.0, periodicity_bounds="fixed")
        + 0.5**2 * RationalQuadratic(1.0, 1.0)
        + 0.1**2 * RBF(0.1)
        + WhiteKernel(0.1**2, (1e-5, 1e5))
    )
    ours, theirs = swapped(kernel, x, y - mean)
    ahead = np.linspace(x[-1, 0], x[-1, 0] + 5, 20)[:, None]
    for mine, its in zip(ours.predict(ahead, return_std=True), theirs.predict(ahead, return_std=True), strict=True):
        # ppm: the record varies by tens, its seasons by some.
        np.testing.assert_allclose(mine, its, atol=0.3)
    assert ours.score(x, y - mean) > 0.999


@pytest.mark.parametrize(
    ("kernel", "variance"),
    [
        # Everything is noise: the sine's variance, 0.125, too.
        (1.0 * RBF(1e1, (1e-2, 1e3)) + WhiteKernel(1.0, (1e-10, 1e1)), 0.04 + 0.125),
        (1.0 * RBF(1e-1, (1e-2, 1e3)) + WhiteKernel(1e-2, (1e-10, 1e1)), 0.04),
    ],
    ids=["from much noise", "from little noise"],
)
def test_the_noise_level_is_estimated(kernel, variance) -> None:
    rng, n = np.random.default_rng(0), 60
    x = rng.uniform(0, 5, size=(n, 1))
    y = 0.5 * np.sin(3 * x[:, 0]) + rng.normal(0, 0.2, size=n)
    ours, theirs = swapped(kernel, x, y, alpha=0.0)
    assert ours.noise_level_ == pytest.approx(theirs.kernel_.k2.noise_level, rel=0.05)
    # Within five standard errors of a variance.
    assert ours.noise_level_ == pytest.approx(variance, rel=5 * np.sqrt(2 / n))
    grid = np.linspace(0, 5, 30)[:, None]
    for mine, its in zip(ours.predict(grid, return_std=True), theirs.predict(grid, return_std=True), strict=True):
        np.testing.assert_allclose(mine, its, atol=0.01)


@pytest.mark.parametrize(
    "kernel",
    [
        1.0 * RBF(1.0, (1e-1, 10.0)),
        1.0 * RationalQuadratic(1.0, 0.1, alpha_bounds=(1e-5, 1e15)),
        1.0 * ExpSineSquared(1.0, 3.0, length_scale_bounds=(0.1, 10.0), periodicity_bounds="fixed"),
        0.1 * DotProduct(1.0, (0.1, 10.0)) ** 2,
        1.0 * Matern(1.0, (1e-1, 10.0), nu=1.5),
    ],
    ids=["rbf", "rational quadratic", "periodic", "dot product", "matern32"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # five points leave much open
def test_kernels_are_compared_by_functions_before_and_after(kernel) -> None:
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 5, size=(6, 1))
    y = np.sin((x[:, 0] - 2.5) ** 2)
    noise = 0.1 if "Dot" in repr(kernel) else 1e-10  # no parabola goes through six points
    grid = np.linspace(0, 5, 30)[:, None]
    before = RangeFormerRegressor(kernel).sample_y(grid, 5)
    np.testing.assert_array_equal(before, Gpr(kernel).sample_y(grid, 5))
    ours, theirs = swapped(kernel, x, y, alpha=noise)
    for mine, its in zip(ours.predict(grid, return_std=True), theirs.predict(grid, return_std=True), strict=True):
        np.testing.assert_allclose(mine, its, atol=0.02)
    after = ours.sample_y(x, 5)
    mean, deviation = ours.predict(x, return_std=True)
    # Functions go through the points, as near as their own spread.
    assert (np.abs(after - mean[:, None]) <= 5 * deviation[:, None] + 1e-3).all()
