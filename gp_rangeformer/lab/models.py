"""The Gaussian processes that the command line trains: one mean, one likelihood, a kernel by name.

They are ordinary GPyTorch models; nothing in them knows about this plug-in.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import torch

from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.regression import kernels
from gp_rangeformer.regression.errors import KernelError
from gp_rangeformer.regression.kernels import (
    DEFAULT,
    PARTS,
    TREND_SEASONAL,
    Covariance,
    DecayingPeriodicKernel,
    Regression,
    hyperparameters,
)

__all__ = [
    "KERNELS",
    "DecayingPeriodicKernel",
    "KernelError",
    "Regression",
    "build_model",
    "check_kernel",
    "covariance",
    "default_dtype",
    "default_kernel",
    "hyperparameters",
    "year_length",
]

_DAYS_PER_YEAR = 365.25
KERNELS = (*(name for name in PARTS if name != "linear"), "linear+rbf", TREND_SEASONAL)


def year_length(dataset: Dataset) -> float:
    """One year in the standardised units of a weekly record's only input, from its smallest spacings (7 days)."""
    x = torch.cat([dataset.train_x, dataset.test_x])[:, 0].double().sort().values
    spacing = x.diff()
    # Leap years make a week 7/366 or 7/365 of a year; gaps in the record are whole weeks.
    spacing = spacing[spacing > 1e-6 * (x[-1] - x[0])]
    week = spacing[spacing < 1.5 * spacing.min()].mean()
    return float(week) * _DAYS_PER_YEAR / 7


def default_kernel(dataset: Dataset | None) -> str:
    """``trend-seasonal`` for the data set co2, ``matern32`` for every other and for tables (None)."""
    return TREND_SEASONAL if dataset is not None and dataset.name == "co2" else DEFAULT


def default_dtype(dataset: Dataset, kernel: str | None) -> str:
    """As :func:`gp_rangeformer.regression.kernels.default_dtype`; None is the data set's default kernel."""
    return kernels.default_dtype(kernel or default_kernel(dataset))


def check_kernel(name: str | None, dataset: Dataset) -> None:
    """Whether ``name`` can be built for ``dataset``; None, the default kernel, always can.

    :raises KernelError: ``name`` is not a kernel's, or does not fit the data.
    """
    if name is not None:
        kernels.check_name(name)
    if name == TREND_SEASONAL and dataset.name != "co2":
        raise KernelError(f"kernel {name!r} knows the year of the data set 'co2' only, not of {dataset.name!r}")


def covariance(dataset: Dataset, kernel: str) -> Covariance:
    """A fresh kernel for the inputs of ``dataset``.

    :raises KernelError: as :func:`check_kernel`.
    """
    check_kernel(kernel, dataset)
    year = year_length(dataset) if kernel == TREND_SEASONAL else None
    return kernels.covariance(kernel, dataset.train_x.shape[1], year)


def build_model(dataset: Dataset, kernel: str) -> tuple[Regression, gpytorch.likelihoods.GaussianLikelihood]:
    """A fresh model in training mode, in the dtype and on the device of ``dataset.train_x``, and its likelihood.

    :raises KernelError: as :func:`check_kernel`.
    """
    model: Any = kernels.build(dataset.train_x, dataset.train_y, covariance(dataset, kernel))
    return model, model.likelihood
