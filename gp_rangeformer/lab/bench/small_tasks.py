"""What is asked of small data sets: a training step, predictions, BoTorch's fit; under BoTorch's settings."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel, ScaleKernel
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.fit import botorch_optimizer
from gp_rangeformer.lab.compare.audit import gradient_vector
from gp_rangeformer.plugin.recognition import recognise_selected

TEST_POINTS = 100
CPU = torch.device("cpu")
_FEWEST_PAIRS = 4  # of a step or a prediction; the first is not counted
_LARGEST_CHOLESKY, _CHOLESKY_TRIES = 4096, 6  # as BoTorch sets them
_LENGTHSCALE, _NOISE, _SPREAD = 1 / 3, 0.02, 0.3  # medians: over sqrt(d), of standardised y; deviation of logarithms


@dataclass(frozen=True)
class Plan:
    """What decides the numbers of a run; two runs share a file if their plans are equal.

    :param repetitions: pairs of host and flag per figure, at most.
    :param threads: of torch.
    """

    dimensions: int
    dtype: str
    seed: int
    repetitions: int
    threads: int


class Step:
    """One value of the log marginal likelihood (the sum over a batch) with its backward pass.

    ConstantMean, ScaleKernel(RBFKernel) with a length-scale per dimension, GaussianLikelihood. Where ``batch`` is more
    than 1 all of them have it as a leading axis: x is batch x n x d and y batch x n, as SingleTaskGP holds its outputs.
    """

    fewest = _FEWEST_PAIRS

    def __init__(self, n: int, batch: int, plan: Plan) -> None:
        shape = torch.Size() if batch == 1 else torch.Size([batch])
        x, y, x_test = draw_data(n, batch, plan)
        self.x, self.y = x.expand(*shape, *x.shape), y.mT.reshape(*shape, n)
        self.x_test = x_test.expand(*shape, *x_test.shape)
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=shape)
        self.model: Any = _Model(self.x, self.y, self.likelihood).to(x)
        self.mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self.model)
        self._generator = torch.Generator().manual_seed(plan.seed)

    def renew(self) -> None:
        """Draw other hyperparameters; before each pair."""
        kernel = self.model.covar_module
        middle = _LENGTHSCALE * self.x.shape[-1] ** 0.5
        kernel.base_kernel.lengthscale = middle * self._factor(kernel.base_kernel.lengthscale)
        kernel.outputscale = self._factor(kernel.outputscale)
        self.likelihood.noise = _NOISE * self._factor(self.likelihood.noise)

    def _factor(self, like: Tensor) -> Tensor:
        return (_SPREAD * torch.randn(like.shape, generator=self._generator, dtype=torch.float64)).exp().to(like)

    def prepare(self) -> None:
        """Before each run, outside the time."""
        self.mll.train()
        self.mll.zero_grad()

    def run(self) -> Any:
        losses = -self.mll(self.model(self.x), self.y)
        losses.sum().backward()
        return losses

    def read(self, result: Any) -> dict[str, Tensor]:
        """What host and flag are compared by."""
        return {"loss": result.detach(), "gradient": gradient_vector(self.model)}


def floor_of(step: Step) -> Callable[[], Sequence[Tensor]]:
    """What no step with Cholesky goes below: K, a factorisation, the inverse and one contraction of the gradient of K,
    as the plug-in computes them, at the hyperparameters as they are. Without GPyTorch."""
    with torch.no_grad():
        fused = recognise_selected(step.model.covar_module.base_kernel, step.x)
    noise = step.likelihood.noise.detach().expand_as(step.y)
    assert fused is not None, "a kernel that is recognised"

    def run() -> Sequence[Tensor]:
        kernel = fused.evaluate().reshape(*step.y.shape, step.y.shape[-1])
        kernel.diagonal(dim1=-2, dim2=-1).add_(noise)
        factor, _ = torch.linalg.cholesky_ex(kernel)
        return fused.contract_symmetric(torch.cholesky_inverse(factor))

    return run


class Prediction(Step):
    """Means and variances of observations at 100 points, by a model without caches."""

    def prepare(self) -> None:
        self.mll.train()  # which forgets the caches
        self.mll.eval()

    def run(self) -> Any:
        with torch.no_grad():
            predicted = self.likelihood(self.model(self.x_test))
            return predicted.mean, predicted.variance

    def read(self, result: Any) -> dict[str, Tensor]:
        return {"mean": result[0], "variance": result[1]}


class FastPrediction(Prediction):
    """The same under ``fast_pred_var``, as in BoTorch's posteriors."""

    def run(self) -> Any:
        with gpytorch.settings.fast_pred_var():
            return super().run()


class Fit(Step):
    """``fit_gpytorch_mll`` of a new SingleTaskGP from its own start values.

    The two may end after different numbers of evaluations: L-BFGS turns rounding into other steps.
    """

    fewest = 1

    def renew(self) -> None:
        """Every fit starts where SingleTaskGP does."""

    def prepare(self) -> None:
        single_task, _ = load_botorch()
        self.model = single_task(self.x, self.y.unsqueeze(-1))
        self.mll = CountingLikelihood(self.model.likelihood, self.model)

    def run(self) -> Any:
        _, fit = load_botorch()
        fit(self.mll)

    def read(self, result: Any) -> dict[str, Tensor]:
        self.mll.train()
        with settings.rangeformer(False), torch.no_grad():
            return {"loss": -self.mll(self.model(*self.model.train_inputs), self.model.train_targets)}


class FitMll(Fit):
    """The same; with the flag on by :func:`gp_rangeformer.fit.botorch_optimizer`."""

    def run(self) -> Any:
        _, fit = load_botorch()
        if settings.rangeformer.on():
            fit(self.mll, optimizer=botorch_optimizer)
        else:
            fit(self.mll)


TASKS: dict[str, type[Step]] = {
    "step": Step,
    "prediction": Prediction,
    "fast prediction": FastPrediction,
    "fit": Fit,
    "fit by fit_mll": FitMll,
}
FITS = ("fit", "fit by fit_mll")  # which need BoTorch


class _Model(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
        super().__init__(x, y, likelihood)
        shape = y.shape[:-1]
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
        self.covar_module = ScaleKernel(RBFKernel(ard_num_dims=x.shape[-1], batch_shape=shape), batch_shape=shape)

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))  # type: ignore[arg-type]


class CountingLikelihood(gpytorch.mlls.ExactMarginalLogLikelihood):
    """Without a forward of its own, which a fit would not take for log p(y)."""

    evaluations = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.evaluations += 1
        return super().__call__(*arguments, **options)


def draw_data(n: int, batch: int, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Points n x d, uniform in the unit cube; n x batch outputs, each a wave in its own direction with noise,
    standardised; and 100 x d test points."""
    generator = torch.Generator().manual_seed(plan.seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    points = torch.rand(n + TEST_POINTS, plan.dimensions, generator=generator, dtype=torch.float64)
    x, x_test = points[:n], points[n:]
    y = torch.sin(3 * x @ draw(plan.dimensions, batch)) + 0.1 * draw(n, batch)
    y = (y - y.mean(0)) / y.std(0)
    dtype = getattr(torch, plan.dtype)
    return x.to(dtype), y.to(dtype), x_test.to(dtype)


@contextlib.contextmanager
def botorch_conditions() -> Iterator[None]:
    """The host's settings as BoTorch sets them, and no warnings."""
    host = gpytorch.settings
    with (
        host.fast_computations(covar_root_decomposition=False, log_prob=False, solves=False),
        host.max_cholesky_size(_LARGEST_CHOLESKY),
        host.cholesky_max_tries(_CHOLESKY_TRIES),
        host.max_eager_kernel_size(_LARGEST_CHOLESKY),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@functools.cache
def load_botorch() -> tuple[Any, Any]:
    """SingleTaskGP and fit_gpytorch_mll. What their import sets for the whole process is put back.

    :raises ImportError: BoTorch is not installed.
    """
    fast = gpytorch.settings.fast_computations
    flags = (fast.covar_root_decomposition, fast.log_prob, fast.solves)
    before = [flag._default for flag in flags]
    with botorch_conditions():  # puts the sizes and tries back
        found = import_module("botorch.models").SingleTaskGP, import_module("botorch.fit").fit_gpytorch_mll
    for flag, default in zip(flags, before, strict=True):
        flag._default = default
    return found


def has_botorch() -> bool:
    """Whether fits can be measured."""
    try:
        load_botorch()
    except ImportError:
        return False
    return True
