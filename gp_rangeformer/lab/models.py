"""The Gaussian processes that the command line trains: one mean, one likelihood, a kernel by name.

They are ordinary GPyTorch models; nothing in them knows about this plug-in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gpytorch
import torch
from gpytorch.kernels import (
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from torch import Tensor

from gp_rangeformer.lab.datasets import Dataset

TREND_SEASONAL = "trend-seasonal"
_DAYS_PER_YEAR = 365.25


class KernelError(ValueError):
    """A kernel that does not exist or does not fit the data; the message names what does."""


class Regression(gpytorch.models.ExactGP):
    """An exact GP with a constant mean.

    :param train_x: n x d.
    :param train_y: n.
    :param kernel: covariance function on d inputs.
    :param part_names: names of the summands of a sum kernel, for :func:`hyperparameters`.
    """

    def __init__(
        self,
        train_x: Tensor,
        train_y: Tensor,
        likelihood: gpytorch.likelihoods.GaussianLikelihood,
        kernel: Kernel,
        part_names: Sequence[str] = (),
    ) -> None:
        super().__init__(train_x, train_y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = kernel
        self.part_names = tuple(part_names)

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        mean = self.mean_module(x)
        return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))  # type: ignore[arg-type]


class DecayingPeriodicKernel(Kernel):
    """k(x, x') = RBF(x, x') Periodic(x, x'): a cycle whose shape drifts. The period is fixed.

    One dense matrix, unlike ``RBFKernel() * PeriodicKernel()``: above ``max_cholesky_size`` GPyTorch replaces the
    factors of a product by Lanczos roots of rank 100, so that solvers would not be asked about the same matrix. The
    plug-in evaluates it as that product, exactly.

    :param period: length of a cycle, in units of x.
    :param decay: lengthscale of the drift, in units of x.
    """

    def __init__(self, period: float, decay: float) -> None:
        super().__init__()
        self.drift = RBFKernel()
        self.drift.lengthscale = torch.tensor(decay)
        self.cycle = PeriodicKernel()
        self.cycle.lengthscale = torch.tensor(1.0)
        self.cycle.period_length = torch.tensor(period)
        # Over 34 cycles a period that is off by 1 % is out of phase, and one Adam step of 0.1 changes it by 10 %.
        self.cycle.raw_period_length.requires_grad_(False)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        return self.drift.forward(x1, x2, diag=diag, **params) * self.cycle.forward(x1, x2, diag=diag, **params)

    def fused_composition(self) -> Kernel:
        return ProductKernel(self.drift, self.cycle)


def year_length(dataset: Dataset) -> float:
    """One year in the standardised units of a weekly record's only input, from its smallest spacings (7 days)."""
    x = torch.cat([dataset.train_x, dataset.test_x])[:, 0].double().sort().values
    spacing = x.diff()
    # Leap years make a week 7/366 or 7/365 of a year; gaps in the record are whole weeks.
    spacing = spacing[spacing > 1e-6 * (x[-1] - x[0])]
    week = spacing[spacing < 1.5 * spacing.min()].mean()
    return float(week) * _DAYS_PER_YEAR / 7


def _scaled(kernel: Callable[[int], Kernel]) -> Callable[[Dataset], tuple[Kernel, tuple[str, ...]]]:
    return lambda dataset: (ScaleKernel(kernel(dataset.train_x.shape[1])), ())


def _linear_and_rbf(dataset: Dataset) -> tuple[Kernel, tuple[str, ...]]:
    return LinearKernel() + ScaleKernel(RBFKernel(ard_num_dims=dataset.train_x.shape[1])), ("linear", "rbf")


def _trend_seasonal(dataset: Dataset) -> tuple[Kernel, tuple[str, ...]]:
    """Rasmussen & Williams (2006), section 5.4.3: long trend, drifting year, medium-term irregularities."""
    year = year_length(dataset)
    trend, medium = RBFKernel(), RQKernel()
    # Their trend's optimum, 67 years; with 50 the forecast bends down after four.
    trend.lengthscale = torch.tensor(70 * year)
    medium.lengthscale = torch.tensor(year)
    parts = (ScaleKernel(trend), ScaleKernel(DecayingPeriodicKernel(year, decay=40 * year)), ScaleKernel(medium))
    # Variances in units of the standardised target. A larger trend forecasts as well, but what float32 can certify
    # depends on the ratio of the largest variance to the noise.
    for part, variance in zip(parts, (1.0, 0.05, 0.01), strict=True):
        part.outputscale = torch.tensor(variance)
    return parts[0] + parts[1] + parts[2], ("trend", "season", "medium")


_KERNELS: dict[str, Callable[[Dataset], tuple[Kernel, tuple[str, ...]]]] = {
    "matern32": _scaled(lambda d: MaternKernel(nu=1.5, ard_num_dims=d)),
    "rbf": _scaled(lambda d: RBFKernel(ard_num_dims=d)),
    "matern12": _scaled(lambda d: MaternKernel(nu=0.5, ard_num_dims=d)),
    "matern52": _scaled(lambda d: MaternKernel(nu=2.5, ard_num_dims=d)),
    "rq": _scaled(lambda d: RQKernel(ard_num_dims=d)),
    "periodic": _scaled(lambda d: PeriodicKernel(ard_num_dims=d)),
    "linear+rbf": _linear_and_rbf,
    TREND_SEASONAL: _trend_seasonal,
}
KERNELS = tuple(_KERNELS)


def default_kernel(dataset: Dataset) -> str:
    """``trend-seasonal`` for the data set co2, ``matern32`` for every other."""
    return TREND_SEASONAL if dataset.name == "co2" else "matern32"


def default_dtype(dataset: Dataset, kernel: str | None) -> str:
    """``float64`` for ``trend-seasonal``, ``float32`` for every other kernel.

    Very smooth kernels next to a noise of 1e-3: in float32 the rounding of the entries of K alone moves the likelihood
    by up to 0.06 nats per point.
    """
    return "float64" if (kernel or default_kernel(dataset)) == TREND_SEASONAL else "float32"


def check_kernel(name: str | None, dataset: Dataset) -> None:
    """Whether ``name`` can be built for ``dataset``; None, the default kernel, always can.

    :raises KernelError: ``name`` is not one of :data:`KERNELS`, or does not fit the data.
    """
    if name is not None and name not in _KERNELS:
        raise KernelError(f"no kernel {name!r}; kernels: {', '.join(KERNELS)}")
    if name == TREND_SEASONAL and dataset.name != "co2":
        raise KernelError(f"kernel {name!r} knows the year of the data set 'co2' only, not of {dataset.name!r}")


def build_model(dataset: Dataset, kernel: str) -> tuple[Regression, gpytorch.likelihoods.GaussianLikelihood]:
    """A fresh model in training mode, in the dtype and on the device of ``dataset.train_x``.

    Initial values are rounded to float32 whatever the dtype, so that models of two dtypes start at the same point.

    :param kernel: one of :data:`KERNELS`; all but ``linear+rbf`` and ``trend-seasonal`` are scaled and have one
        lengthscale per input.
    :raises KernelError: unknown kernel, or one that does not fit the data.
    """
    check_kernel(kernel, dataset)
    covariance, part_names = _KERNELS[kernel](dataset)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    if kernel == TREND_SEASONAL:
        # 1.4 ppm at the start instead of 12: the seasonal swing must not look like noise.
        likelihood.noise = torch.tensor(0.01)
    model = Regression(dataset.train_x, dataset.train_y, likelihood, covariance, part_names)
    model.to(dtype=dataset.train_x.dtype, device=dataset.train_x.device)
    return model, likelihood


_UNSPOKEN = {"likelihood", "noise_covar", "mean_module", "covar_module", "base_kernel", "kernels"}


def hyperparameters(model: Regression, feature_names: Sequence[str] = ()) -> dict[str, float]:
    """Every learnable hyperparameter by a short name, with its constraint applied: ``lengthscale[x3]``, ``noise``.

    :param feature_names: d names for the lengthscales of an ARD kernel; their numbers when empty.
    """
    values: dict[str, float] = {}
    for path, parameter, constraint in model.named_parameters_and_constraints():
        if not parameter.requires_grad:
            continue
        constrained = (parameter if constraint is None else constraint.transform(parameter)).detach()
        name = _short_name(path, model.part_names)
        numbers = constrained.flatten().tolist()
        if len(numbers) == 1:
            values[name] = numbers[0]
        else:
            labels = feature_names if len(feature_names) == len(numbers) else [str(i) for i in range(len(numbers))]
            values |= {f"{name}[{label}]": number for label, number in zip(labels, numbers, strict=True)}
    return values


def _short_name(path: str, part_names: Sequence[str]) -> str:
    *modules, last = path.split(".")
    last = last.removeprefix("raw_")
    if last == "constant" and modules == ["mean_module"]:
        return "mean"
    spoken = [module for module in modules if module not in _UNSPOKEN]
    spoken = [part_names[int(module)] if module.isdigit() and part_names else module for module in spoken]
    return ".".join([*spoken, last])
