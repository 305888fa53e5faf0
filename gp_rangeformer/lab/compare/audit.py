"""Exact float64 log marginal likelihoods and their gradients, at any hyperparameters, outside every timing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.lab.compare.result import ReferenceCheck
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model
from gp_rangeformer.solvers.exact import Exact

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class ValueAndGradient:
    """Log marginal likelihood per point in nats; gradient of its negative over all raw hyperparameters concatenated."""

    value: float
    gradient: Tensor


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters, fixed ones too, on the CPU."""
    # copy=True: on the CPU .cpu() alone would hand out the parameter itself, which the optimiser changes in place
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}


@torch.no_grad()
def restore(model: torch.nn.Module, parameters: Parameters) -> None:
    """Put back what :func:`snapshot` took, in the model's own dtype and device."""
    for name, parameter in model.named_parameters():
        parameter.copy_(parameters[name])


def gradient_vector(model: torch.nn.Module) -> Tensor:
    """The gradients of all learnable parameters, concatenated in the model's order, float64 on the CPU."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.detach().double().cpu().flatten() for gradient in gradients])


def relative_error(gradient: Tensor, exact: Tensor) -> float:
    """|g - g64| / |g64|."""
    return float((gradient - exact).norm() / exact.norm())


class ExactEvaluator:
    """The exact value and gradient of one model at any parameters, in float64. O(n^3) and about four n x n matrices.

    :param dataset: the data, in float64.
    :param kernel: name of the kernel.
    """

    def __init__(self, dataset: Dataset, kernel: str) -> None:
        self._dataset = dataset
        self._model, likelihood = build_model(dataset, kernel)
        self._mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, self._model)
        self._known: dict[bytes, ValueAndGradient] = {}

    def __call__(self, parameters: Parameters) -> ValueAndGradient:
        """By the plug-in's closed form; what it declines is answered by GPyTorch's Cholesky. Answers are kept."""
        key = b"".join(parameters[name].double().numpy().tobytes() for name in sorted(parameters))
        if key not in self._known:
            with settings.rangeformer(), settings.solver(Exact()), settings.exact_size(1):
                self._known[key] = self._evaluate(parameters)
        return self._known[key]

    def value(self, parameters: Parameters) -> float:
        """The value alone, in a third of the time."""
        with settings.rangeformer(), settings.solver(Exact()), settings.exact_size(1), torch.no_grad():
            return -self._loss(parameters).item()

    def by_gpytorch(self, parameters: Parameters) -> ValueAndGradient:
        """The same from GPyTorch's own Cholesky path, differentiated by autograd: an independent check."""
        with settings.rangeformer(False):
            return self._evaluate(parameters)

    def _evaluate(self, parameters: Parameters) -> ValueAndGradient:
        self._model.zero_grad()
        with gpytorch.settings.fast_computations(False, False, False):
            loss = self._loss(parameters)
            loss.backward()
        return ValueAndGradient(-loss.item(), gradient_vector(self._model))

    def _loss(self, parameters: Parameters) -> Tensor:
        restore(self._model, parameters)
        with gpytorch.settings.fast_computations(False, False, False):
            return -self._mll(self._model(self._dataset.train_x), self._dataset.train_y)  # type: ignore[operator]


def check_reference(evaluator: ExactEvaluator, start: Parameters) -> ReferenceCheck:
    """The closed form against GPyTorch's Cholesky at the start value, both float64."""
    exact = evaluator(start)
    started = time.perf_counter()
    independent = evaluator.by_gpytorch(start)
    return ReferenceCheck(
        against="GPyTorch's float64 Cholesky, value and gradient at the start",
        value_difference=exact.value - independent.value,
        gradient_difference=relative_error(exact.gradient, independent.gradient),
        seconds=time.perf_counter() - started,
    )
