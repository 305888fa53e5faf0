"""GPyTorch models of every supported kind on small data, and dense float64 references that use the host's code only."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from linear_operator.operators import AddedDiagLinearOperator, DenseLinearOperator, DiagLinearOperator
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.report import ReportCollection
from gp_rangeformer.solvers import gradient_weight
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.system.linear_system import LinearSystem

DIM = 3
RANK = 40
PROBES = 16


def _spectral_mixture(b: torch.Size) -> Kernel:
    kernel = SpectralMixtureKernel(num_mixtures=2, ard_num_dims=DIM, batch_shape=b)
    kernel.initialize(
        mixture_weights=torch.tensor([0.7, 0.4]).expand(*b, 2),
        mixture_means=torch.tensor([[0.2], [0.6]]).expand(*b, 2, DIM).unsqueeze(-2),
        mixture_scales=torch.tensor([[0.5], [0.2]]).expand(*b, 2, DIM).unsqueeze(-2),
    )
    return kernel


KERNELS: dict[str, Callable[[torch.Size], Kernel]] = {
    "rbf": lambda b: ScaleKernel(RBFKernel(batch_shape=b), batch_shape=b),
    "matern12": lambda b: ScaleKernel(MaternKernel(0.5, batch_shape=b), batch_shape=b),
    "matern32": lambda b: ScaleKernel(MaternKernel(1.5, batch_shape=b), batch_shape=b),
    "matern52": lambda b: ScaleKernel(MaternKernel(2.5, batch_shape=b), batch_shape=b),
    "ard": lambda b: ScaleKernel(MaternKernel(1.5, ard_num_dims=DIM, batch_shape=b), batch_shape=b),
    "bare": lambda b: RBFKernel(batch_shape=b),
    "rational_quadratic": lambda b: ScaleKernel(RQKernel(batch_shape=b), batch_shape=b),
    "periodic": lambda b: ScaleKernel(PeriodicKernel(batch_shape=b), batch_shape=b),
    "spectral_mixture": _spectral_mixture,
    "sum": lambda b: (
        ScaleKernel(RBFKernel(batch_shape=b), batch_shape=b)
        + ScaleKernel(MaternKernel(0.5, batch_shape=b), batch_shape=b)
    ),
    "product": lambda b: ScaleKernel(
        RBFKernel(active_dims=(0, 1), batch_shape=b) * MaternKernel(1.5, active_dims=(2,), batch_shape=b), batch_shape=b
    ),
    "nested": lambda b: ScaleKernel(
        AdditiveKernel(RBFKernel(batch_shape=b), PeriodicKernel(batch_shape=b) * MaternKernel(2.5, batch_shape=b)),
        batch_shape=b,
    ),
    "linear_plus_rbf": lambda b: LinearKernel(batch_shape=b) + ScaleKernel(RBFKernel(batch_shape=b), batch_shape=b),
}

MEANS: dict[str, Callable[[torch.Size], Any]] = {
    "constant": lambda b: gpytorch.means.ConstantMean(batch_shape=b),
    "linear": lambda b: gpytorch.means.LinearMean(DIM, batch_shape=b),
    "zero": lambda b: gpytorch.means.ZeroMean(batch_shape=b),
}


def _fixed(noise: Tensor, b: torch.Size, learn: bool) -> Any:
    return FixedNoiseGaussianLikelihood(noise, learn_additional_noise=learn, batch_shape=b)


LIKELIHOODS: dict[str, Callable[[Tensor, torch.Size], Any]] = {
    "gaussian": lambda noise, b: GaussianLikelihood(batch_shape=b),
    "fixed": lambda noise, b: _fixed(torch.full_like(noise, 0.05), b, False),
    "heteroscedastic": lambda noise, b: _fixed(noise, b, False),
    "fixed_and_learned": lambda noise, b: _fixed(noise, b, True),
}


class GP(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, mean: Any, kernel: Kernel) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = mean
        self.covar_module = kernel

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def marginal_log_likelihood(model: Any) -> Any:
    return gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)


def added_diagonal(kernel: Tensor, noise: Tensor | float) -> Any:
    """kernel + diag(noise) as the operator that GPyTorch makes of them; a scalar noise is expanded."""
    noise = torch.as_tensor(noise, dtype=kernel.dtype).expand(kernel.shape[:-1])
    parts: Any = DenseLinearOperator(kernel), DiagLinearOperator(noise)
    return AddedDiagLinearOperator(*parts)


@dataclass
class Problem:
    """A model with its data; hyperparameters spread over the batch, noise 0.05."""

    model: Any
    x: Tensor
    y: Tensor
    test_x: Tensor

    @property
    def likelihood(self) -> Any:
        return self.model.likelihood

    def loss(self) -> Tensor:
        """Negative log marginal likelihood per point, summed over the batch, with a graph."""
        self.model.train()
        return -marginal_log_likelihood(self.model)(self.model(self.x), self.y).sum()

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.item(), flat_gradient(self.model)

    def predict(self, test_x: Tensor | None = None) -> Any:
        self.model.train()  # leaving eval mode clears the caches of earlier predictions
        self.model.eval()
        return self.model(self.test_x if test_x is None else test_x)


def flat_gradient(module: torch.nn.Module) -> Tensor:
    """All gradients as one float64 vector; a parameter without one is an error."""
    gradients = []
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        gradients.append(parameter.grad.reshape(-1).double())
    return torch.cat(gradients)


def data(n: int, batch: tuple[int, ...] = (), m: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (*batch) n 3, targets (*batch) n and m test inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*batch, n, DIM, generator=generator, dtype=torch.float64)
    noise = torch.randn(*batch, n, generator=generator, dtype=torch.float64)
    y = torch.sin(5 * x[..., 0]) + x[..., 1] ** 2 + 0.2 * noise
    test_x = torch.rand(*batch, m, DIM, generator=generator, dtype=torch.float64)
    return x, y, test_x


def spread_hyperparameters(module: torch.nn.Module) -> None:
    """Move every raw parameter off its default, each batch element differently."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def build(
    kernel: str = "matern32",
    likelihood: str = "gaussian",
    mean: str = "constant",
    *,
    n: int = 150,
    batch: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    x, y, test_x = (tensor.to(dtype) for tensor in data(n, batch, seed=seed))
    b = torch.Size(batch)
    noise = torch.linspace(0.02, 0.2, n, dtype=dtype).expand(*batch, n)
    like = LIKELIHOODS[likelihood](noise, b)
    model = GP(x, y, like, MEANS[mean](b), KERNELS[kernel](b)).to(dtype)
    spread_hyperparameters(model)
    for name, parameter in model.named_parameters():
        if "lengthscale" in name:
            parameter.data -= 0.7  # 0.3 to 0.5: rank 40 is then not enough and the solver has work to do
    if likelihood == "gaussian":
        like.noise = 0.05
    return Problem(model, x, y, test_x)


@contextlib.contextmanager
def exact_path() -> Iterator[ReportCollection]:
    """The flag on, answered by the closed-form exact path; yields the reports."""
    with settings.rangeformer(), settings.exact_size(1), settings.min_size(10**6), collect_reports() as reports:
        yield reports


def set_to(name: str, value: Any) -> contextlib.AbstractContextManager[None]:
    """The context of a setting, or of an argument of the certified solver."""
    if name in {field.name for field in dataclasses.fields(Certified)}:
        return settings.solver(**{name: value})
    return getattr(settings, name)(value)


@contextlib.contextmanager
def plain_probes() -> Iterator[None]:
    """Gradients of the log determinant from the probes alone, as in :func:`probe_gradient`: no control variate, and no
    neighbours, which whiten them."""
    before = gradient_weight.CONTROL_GAP
    gradient_weight.CONTROL_GAP = -1.0
    try:
        with settings.solver(neighbours=0):
            yield
    finally:
        gradient_weight.CONTROL_GAP = before


@contextlib.contextmanager
def rangeformer_path(
    tolerance: float = 1e-7, rank: int = RANK, probes: int = PROBES, predictor: str = "extrapolate"
) -> Iterator[ReportCollection]:
    """The flag on, answered by the RangeFormer solver at any n; tight, so that gradients can be compared."""
    with (
        settings.rangeformer(),
        settings.exact_size(1),
        settings.min_size(1),
        settings.solver(
            tolerance=tolerance,
            prediction_tolerance=tolerance,
            prediction_error=tolerance,
            rank=rank,
            num_probes=probes,
            predictor=predictor,
            gradient_tolerance=math.inf,  # small systems: else the exact path would answer for few probes
        ),
        collect_reports() as reports,
    ):
        yield reports


def dense_covariance(problem: Problem) -> tuple[Tensor, Tensor]:
    """(mean, K + D) of the training targets, dense, with a graph to the hyperparameters; host code only."""
    assert settings.rangeformer.off()
    problem.model.train()
    marginal = problem.likelihood(problem.model(problem.x), problem.x)
    return marginal.mean, marginal.lazy_covariance_matrix.to_dense()


def probe_vectors(n: int, probes: int = PROBES) -> Tensor:
    """The solver's own probes for systems of size n."""
    anything = LinearSystem(torch.eye(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64))
    return Certified(num_probes=probes).probe_vectors(anything)


def probe_gradient(problem: Problem, probes: int = PROBES) -> Tensor:
    """What the gradient of the loss must be when tr(A^-1 dA) is the mean over the solver's probes; dense float64.

    Differs from the exact gradient by the probes' variance only, so it can be compared tightly.
    """
    problem.model.zero_grad()
    probe_surrogate(problem, probes).backward()
    return flat_gradient(problem.model)


def probe_surrogate(problem: Problem, probes: int = PROBES) -> Tensor:
    """A scalar whose gradient :func:`probe_gradient` explains; its value means nothing."""
    mean, covariance = dense_covariance(problem)
    n = covariance.shape[-1]
    signs = probe_vectors(n, probes)
    difference = (problem.y - mean).unsqueeze(-1)
    with torch.no_grad():
        solution = torch.linalg.solve(covariance, difference)
        solved = torch.linalg.solve(covariance, signs.expand(*covariance.shape[:-1], -1))
    surrogate = (
        2 * (solution * difference).sum()
        - (solution * (covariance @ solution)).sum()
        + (solved * (covariance @ signs)).sum() / probes
    )
    return surrogate / (2 * n)


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))
