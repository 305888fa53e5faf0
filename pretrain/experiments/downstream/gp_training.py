"""One Gaussian process, trained by Cholesky factorisations or by a network's answers with nothing verified."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from unittest import mock

import gpytorch
import torch
from jaxtyping import Float
from linear_operator.utils.errors import NanError, NotPSDError
from scipy.optimize import minimize_scalar
from torch import Tensor

from gp_rangeformer import clear_memory, collect_reports, settings
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import Regression, hyperparameters
from gp_rangeformer.rangeformer import answer
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from gp_rangeformer.report import OutsideToleranceWarning
from gp_rangeformer.solvers.certified import Certified

Method = Literal["exact", "direct"]


@dataclass
class Trajectory:
    """One training run. Lists have an entry per step; values are log p(y) / n in nats, parameters those before."""

    values: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parameters: list[dict[str, float]] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)  # relative; "direct": the largest of y's and the probes'
    inside: list[bool] = field(default_factory=list)  # "direct": whether the value lies in its rigorous interval
    exact_values: list[float | None] = field(default_factory=list)  # at the same hyperparameters, None if none exists
    stopped: str | None = None  # why before the last step


def build(dataset: Dataset) -> Regression:
    """One length-scale whatever the dimension, at GPyTorch's initial values, float64."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    return Regression(dataset.train_x, dataset.train_y, likelihood, kernel).double()


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """GPyTorch's Cholesky path at every n."""
    with settings.rangeformer(False), gpytorch.settings.fast_computations(False, False, False):
        yield


@contextlib.contextmanager
def directly(model: RangeFormer, seed: int, tolerance: float = 0.01) -> Iterator[None]:
    """The flag in direct mode at every n, with ``model`` as its network, which the setting knows by name only."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(answer, "pretrained", return_value=model))
        for setting in (
            settings.rangeformer(),
            settings.solver(Direct(Certified(seed=seed, tolerance=tolerance))),
            settings.exact_size(1),
            settings.min_size(1),
        ):
            stack.enter_context(setting)
        stack.enter_context(warnings.catch_warnings())
        # One a step: the residuals are in the result.
        warnings.filterwarnings("ignore", category=OutsideToleranceWarning)
        yield


def train(
    dataset: Dataset, method: Method, network: RangeFormer, *, steps: int, learning_rate: float, seed: int
) -> tuple[Regression, Trajectory]:
    """Adam on the negative log marginal likelihood as ``method`` knows it.

    Stops at a value or a gradient that is not finite, with the last hyperparameters that had finite ones.
    """
    clear_memory()
    torch.manual_seed(seed)
    model, reference = build(dataset), build(dataset)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    run = Trajectory()
    for step in range(steps):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with directly(network, seed) if method == "direct" else exactly(), collect_reports() as reports:
            started = time.perf_counter()
            optimiser.zero_grad()
            loss = -likelihood_per_point(model)
            loss.backward()
            evaluated = time.perf_counter()
        value = -loss.item()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not math.isfinite(value) or not all(bool(gradient.isfinite().all()) for gradient in gradients):
            model.load_state_dict(state)
            run.stopped = f"value or gradient not finite at step {step}"
            break
        run.parameters.append(hyperparameters(model))
        resumed = time.perf_counter()
        optimiser.step()
        run.seconds.append(time.perf_counter() - resumed + evaluated - started)
        run.values.append(value)
        if method != "exact":
            reference.load_state_dict(state)
            run.exact_values.append(exact_value(reference))
            for report in reports:
                if report.operation == "inv_quad_logdet":
                    run.residuals.append(report.residual)
                    interval = report.mll_interval
                    run.inside.append(report.mll is not None and interval is not None and interval.contains(report.mll))
    return model, run


def likelihood_per_point(model: Regression) -> Float[Tensor, ""]:
    """log p(y) / n, by whatever answers in the present context."""
    likelihood = model.likelihood
    assert isinstance(likelihood, gpytorch.likelihoods.GaussianLikelihood)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    assert model.train_inputs is not None
    return mll(model(*model.train_inputs), model.train_targets)  # type: ignore[return-value]


@dataclass(frozen=True)
class LengthScale:
    """One length-scale, found by values of the likelihood alone: no gradient, no probes."""

    value: float
    evaluations: int
    likelihood: float  # nats per point, as the method knows it


def set_length_scale(model: Regression, value: float) -> None:
    """Of a model of :func:`build`."""
    kernel = model.covar_module
    assert isinstance(kernel, gpytorch.kernels.ScaleKernel)
    kernel.base_kernel.initialize(lengthscale=value)  # type: ignore[operator]


@torch.no_grad()
def find_length_scale(model: Regression, method: Method, network: RangeFormer, seed: int) -> LengthScale:
    """Maximise log p(y) over the length-scale in 0.05 to 20 by Brent's method; ``model`` keeps all else, and it."""

    def loss(log_length: float) -> float:
        set_length_scale(model, math.exp(log_length))
        with directly(network, seed) if method == "direct" else exactly():
            return -float(likelihood_per_point(model.train()))

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-4})
    return LengthScale(math.exp(found.x), found.nfev, -loss(found.x))


@torch.no_grad()
def exact_value(model: Regression) -> float | None:
    """log p(y) / n by Cholesky; None where the matrix is not positive definite to rounding."""
    try:
        with exactly():
            return likelihood_per_point(model.train()).item()
    except (NotPSDError, NanError):
        return None


@torch.no_grad()
def rmse(model: Regression, dataset: Dataset) -> float:
    """Of the predictive mean, in units of the standardised target, by whatever answers in the present context."""
    model.eval()
    # The variances would ask for as many solves as there are test rows.
    with gpytorch.settings.skip_posterior_variances():
        prediction = model(dataset.test_x)
    model.train()
    assert isinstance(prediction, gpytorch.distributions.MultivariateNormal)
    return float((prediction.loc - dataset.test_y).square().mean().sqrt())
