"""Kernels by name, and the GPyTorch model around one: constant mean, Gaussian noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

from gp_rangeformer.regression.errors import KernelError

TREND_SEASONAL = "trend-seasonal"
# Where float64 takes some 1.4 times as long (4,000 rows of kin40k, pol, protein, elevators), and 0.2 times where the
# noise is small, which float32 does not certify.
_ROWS_IN_FLOAT64 = 5000
_SMALLEST_NOISE = 1e-8  # of a standardised target
DEFAULT = "matern32"  # of the command line, where none is named


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
        self.drift.lengthscale = torch.tensor(decay, device="cpu")
        self.cycle = PeriodicKernel()
        self.cycle.lengthscale = torch.tensor(1.0, device="cpu")
        self.cycle.period_length = torch.tensor(period, device="cpu")
        # Over 34 cycles a period that is off by 1 % is out of phase, and one Adam step of 0.1 changes it by 10 %.
        self.cycle.raw_period_length.requires_grad_(False)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        return self.drift.forward(x1, x2, diag=diag, **params) * self.cycle.forward(x1, x2, diag=diag, **params)

    def fused_composition(self) -> Kernel:
        return ProductKernel(self.drift, self.cycle)


@dataclass(frozen=True)
class Covariance:
    """A fresh kernel as a model starts with it.

    ``name``: what it can be made again by, or None of a kernel that was given as a module. ``part_names``: of the
    summands. ``noise``: the variance of the noise at the start; None: GPyTorch's.
    """

    name: str | None
    kernel: Kernel
    part_names: tuple[str, ...] = ()
    noise: float | None = None

    @property
    def title(self) -> str:
        return self.name or type(self.kernel).__name__


_PARTS: dict[str, Callable[[int], Kernel]] = {
    "matern32": lambda d: ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=d)),
    "rbf": lambda d: ScaleKernel(RBFKernel(ard_num_dims=d)),
    "matern12": lambda d: ScaleKernel(MaternKernel(nu=0.5, ard_num_dims=d)),
    "matern52": lambda d: ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=d)),
    "rq": lambda d: ScaleKernel(RQKernel(ard_num_dims=d)),
    "periodic": lambda d: ScaleKernel(PeriodicKernel(ard_num_dims=d)),
    "linear": lambda d: LinearKernel(),
}
PARTS = tuple(_PARTS)


def check_name(name: str) -> None:
    """:raises KernelError: ``name`` is none of :data:`PARTS`, a sum of different ones, or ``trend-seasonal``."""
    names = _part_names(name)
    if name != TREND_SEASONAL and not set(names) <= set(PARTS):
        known = f"{', '.join(PARTS)}, sums of them as in linear+rbf, {TREND_SEASONAL}"
        raise KernelError(f"no kernel {name!r}; kernels: {known}")
    twice = [part for part in names if names.count(part) > 1]
    if twice:
        raise KernelError(f"kernel {name!r} has {twice[0]!r} twice: a sum of different ones says as much")


def covariance(name: str, d: int, year: float | None = None) -> Covariance:
    """A fresh kernel on d inputs: scaled, with a length-scale per input, each summand by itself.

    :param year: one year in the units of the only input, for ``trend-seasonal``.
    :raises KernelError: as :func:`check_name`; ``trend-seasonal`` without a year.
    """
    check_name(name)
    if name == TREND_SEASONAL:
        if year is None or d != 1:
            raise KernelError(f"kernel {name!r} needs dates as the only input: name another one, or drop other columns")
        return _trend_seasonal(year)
    names = _part_names(name)
    kernel = _PARTS[names[0]](d)
    for part in names[1:]:
        kernel = kernel + _PARTS[part](d)
    return Covariance(name, kernel, names if len(names) > 1 else ())


def _part_names(name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in name.split("+"))


def _trend_seasonal(year: float) -> Covariance:
    """Rasmussen & Williams (2006), section 5.4.3: long trend, drifting year, medium-term irregularities."""
    trend, medium = RBFKernel(), RQKernel()
    # Their trend's optimum, 67 years; with 50 the forecast bends down after four.
    trend.lengthscale = torch.tensor(70 * year, device="cpu")
    medium.lengthscale = torch.tensor(year, device="cpu")
    parts = (ScaleKernel(trend), ScaleKernel(DecayingPeriodicKernel(year, decay=40 * year)), ScaleKernel(medium))
    # Variances in units of the standardised target. A larger trend forecasts as well, but what float32 can certify
    # depends on the ratio of the largest variance to the noise.
    for part, variance in zip(parts, (1.0, 0.05, 0.01), strict=True):
        part.outputscale = torch.tensor(variance, device="cpu")
    # 1.4 ppm of CO2 at the start instead of 12: the seasonal swing must not look like noise.
    return Covariance(TREND_SEASONAL, parts[0] + parts[1] + parts[2], ("trend", "season", "medium"), noise=0.01)


def default_dtype(name: str | None, rows: int | None = None) -> str:
    """``float64`` for ``trend-seasonal`` and for tables of so few ``rows`` that it takes seconds, else ``float32``.

    Very smooth kernels next to a noise of 1e-3: in float32 the rounding of the entries of K alone moves the likelihood
    by up to 0.06 nats per point, and a mean by a tenth of an observation's deviation.
    """
    few = rows is not None and rows <= _ROWS_IN_FLOAT64
    return "float64" if few or name == TREND_SEASONAL else "float32"


def build_for_table(train_x: Tensor, train_y: Tensor, start: Covariance) -> Regression:
    """As :func:`build`, with room for tables without noise, as simulators give, in float64. GPyTorch's bound, which
    float32 keeps, is a hundredth of the target's deviation."""
    return build(train_x, train_y, start, _SMALLEST_NOISE if train_x.dtype == torch.float64 else None)


def build(train_x: Tensor, train_y: Tensor, start: Covariance, smallest_noise: float | None = None) -> Regression:
    """A model in training mode, in the dtype and on the device of ``train_x``; its likelihood is ``.likelihood``.

    Initial values are rounded to float32 whatever the dtype, so that models of two dtypes start at the same point.

    :param train_x: n x d.
    :param train_y: n.
    :param start: its kernel stays as it is: the model trains a copy.
    :param smallest_noise: None for GPyTorch's bound, 1e-4. Stored parameters are those of one bound.
    """
    smallest = None if smallest_noise is None else gpytorch.constraints.GreaterThan(smallest_noise)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=smallest)
    if start.noise is not None:
        likelihood.noise = torch.tensor(start.noise, device="cpu")
    model = Regression(train_x, train_y, likelihood, copy.deepcopy(start.kernel), start.part_names)
    return model.to(dtype=train_x.dtype, device=train_x.device)


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
