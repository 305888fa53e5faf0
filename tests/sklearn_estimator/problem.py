"""Points, targets and kernels for both estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, DotProduct, Matern, WhiteKernel

from gp_rangeformer.sklearn import RangeFormerRegressor

RNG = np.random.default_rng(0)

N = 60

X = RNG.uniform(-2, 2, size=(N, 2))

Y = np.stack([np.sin(X.sum(1)), 3 + np.cos(2 * X[:, 0])], axis=1) + 0.1 * RNG.normal(size=(N, 2))

NEW = RNG.uniform(-2, 2, size=(7, 2))

LENGTHS: Any = [1.1, 0.8]

KERNEL = 1.4 * RBF(LENGTHS) + WhiteKernel(0.02)

KERNELS = [
    KERNEL,
    0.5 * Matern(0.7, nu=1.5) + 0.3 * DotProduct(0.4) ** 2 + WhiteKernel(0.02),
    2.0 * (RBF(0.9) * Matern(2.0, nu=2.5) + WhiteKernel(0.01)),
]

ALPHAS = [1e-6, np.linspace(1e-3, 0.1, N)]

# Conditions of the systems here: variances of some units over noise of 1e-2.
ROUNDING = 1e-9

both_paths = pytest.mark.usefixtures("path")

Gpr: Any = GaussianProcessRegressor  # whose defaults say less than its documentation of what it takes


def both(**options: Any) -> tuple[Any, RangeFormerRegressor]:
    return Gpr(optimizer=None, **options), RangeFormerRegressor(optimizer=None, **options)
