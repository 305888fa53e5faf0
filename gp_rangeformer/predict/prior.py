"""A trained model as it is now: its prior mean and kernel at any points, its data, and BoTorch's transforms."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from gpytorch import Module
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.models import ExactGP
from jaxtyping import Float
from linear_operator.operators import AddedDiagLinearOperator
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.predictions import unevaluated_kernels
from gp_rangeformer.plugin.recognition import recognise_selected
from gp_rangeformer.plugin.renewal import strategy_as_it_is

_COVERED = (
    "RBF, Matern, rational quadratic, periodic and constant kernels, scaled, added and multiplied in any nesting, and "
    "classes of one's own with a fused_composition()"
)


class PriorAt(NamedTuple):
    """The prior at t points: its mean, and the inputs that the kernel reads (what a model's ``forward`` makes of x,
    active dimensions selected), both in the graph of x."""

    mean: Float[Tensor, " t"]
    inputs: Float[Tensor, "t d"]


class TrainingSystem(NamedTuple):
    """A = K + D of the training points, with the diagonal D, and the right-hand side of a predictive mean."""

    covariance: AddedDiagLinearOperator
    noise: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]


class FrozenPrior:
    """The prior of a copy of ``model``, in evaluation mode and without gradients for its parameters.

    ``points`` (n x d, as the kernel reads them), ``expression`` and ``parameters`` are the kernel's, copied, so that
    nothing changes them.

    :raises ValueError: what the model is or holds is not covered, naming the remedy.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model: Any = copied_model(checked_model(model, "sample_paths"))
        self._of_botorch = is_botorchs(model)
        self._inputs: tuple[Tensor, ...] = tuple(self._model.train_inputs)
        self.dtype, self.device = self._inputs[0].dtype, self._inputs[0].device
        self.dimensions: int = self._inputs[0].shape[-1]
        with torch.no_grad():
            fused = self._fused()
        self.expression = fused.expression
        self.points = self.at(self._inputs[0]).inputs.detach().clone()
        self.parameters = tuple(parameter.detach().clone() for parameter in fused.parameters)

    def at(self, x: Float[Tensor, "t d"]) -> PriorAt:
        """The prior at points after the input transform. O(t d) for a model without a network in it."""
        distribution = self._distribution(x)
        covariance: Any = distribution.lazy_covariance_matrix
        return PriorAt(distribution.mean, covariance.x1)

    def transformed(self, x: Tensor) -> Tensor:
        """``x`` as BoTorch's ``posterior`` hands it to the model; unchanged for other models."""
        return self._model.transform_inputs(x) if self._of_botorch else x

    def untransformed(self, values: Float[Tensor, "*s t"], x: Tensor) -> Float[Tensor, "*s t"]:
        """In the units of the targets that a BoTorch model was given.

        :param x: (*batch) t x d, transformed.
        """
        transform = getattr(self._model, "outcome_transform", None) if self._of_botorch else None
        if transform is None:
            return values
        takes_inputs = "X" in inspect.signature(transform.untransform).parameters
        found, _ = transform.untransform(values.unsqueeze(-1), **({"X": x} if takes_inputs else {}))
        return found.squeeze(-1)

    def training_system(self) -> TrainingSystem:
        """As GPyTorch's prediction strategy forms it, K evaluated by whoever does so now. Without a graph; it holds K.

        :raises ValueError: the noise is no diagonal.
        """
        prior = self._distribution(self._inputs[0])
        covariance = self._model.likelihood(prior, self._inputs).lazy_covariance_matrix
        if not isinstance(covariance, AddedDiagLinearOperator):
            raise ValueError(
                f"{type(self._model.likelihood).__name__} adds no independent noise to every target: use a "
                "GaussianLikelihood or a FixedNoiseGaussianLikelihood"
            )
        evaluated = covariance.evaluate_kernel()
        noise = evaluated._diag_tensor._diagonal().expand(len(prior.mean))
        return TrainingSystem(evaluated, noise, self._model.train_targets - prior.mean)

    def _distribution(self, x: Tensor) -> MultivariateNormal:
        # Not by the host's settings, which other threads would see: they would be given their own models' priors.
        with unevaluated_kernels():
            found: Any = Module.__call__(self._model, x.unsqueeze(-1) if x.dim() == 1 else x)
        return found

    def _fused(self) -> FusedKernel:
        prior = self._distribution(self._inputs[0])
        if isinstance(prior, MultitaskMultivariateNormal) or prior.mean.dim() != 1:
            raise ValueError("the model has several outputs or a batch: draw from every one of them by itself")
        covariance: Any = prior.lazy_covariance_matrix
        if not isinstance(covariance, LazyEvaluatedKernelTensor):
            raise ValueError(
                f"the model's forward computes with covariances ({type(covariance).__name__}): combine the kernels "
                f"instead (k1 + k2, k1 * k2), and call the result once. Covered are {_COVERED}"
            )
        plain = not covariance.last_dim_is_batch and not covariance.params
        fused = recognise_selected(covariance.kernel, covariance.x1) if plain else None
        if not isinstance(fused, FusedKernel):
            raise ValueError(
                f"functions with the covariance of this {type(covariance.kernel).__name__} cannot be drawn: it is, or "
                f"contains, a kernel without spectral samples here. Covered are {_COVERED}"
            )
        return fused


def checked_model(model: torch.nn.Module, asked: str) -> ExactGP:
    """A model of one output whose training data are there and finite.

    :param asked: the name of the function that needs it.
    :raises ValueError: another one, naming the remedy.
    """
    if not isinstance(model, ExactGP):
        raise ValueError(
            f"{asked} needs a gpytorch.models.ExactGP, got {type(model).__name__}: of a model list, take every model "
            "by itself; variational models have no exact posterior"
        )
    if model.train_inputs is None or model.train_targets is None:
        raise ValueError("the model has no training data: give it some with set_train_data")
    inputs: Any = tuple(model.train_inputs)
    targets: Any = model.train_targets
    if len(inputs) != 1:
        raise ValueError(f"the model has {len(inputs)} training inputs: join them into one tensor n x d")
    if inputs[0].dim() != 2 or targets.dim() != 1:
        raise ValueError(
            f"training inputs {tuple(inputs[0].shape)} and targets {tuple(targets.shape)} are of a batch, of several "
            "outputs or of fantasies: take a model of n x d inputs and n targets for each"
        )
    if inputs[0].dtype != targets.dtype or inputs[0].dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"training inputs are {inputs[0].dtype}, targets {targets.dtype}: make both float32 or both float64"
        )
    for name, tensor in (("inputs", inputs[0]), ("targets", targets)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"training {name} hold NaN or infinity: leave those points out with set_train_data")
    return model


def strategy_of(model: Any) -> Any:
    """As :func:`~gp_rangeformer.plugin.renewal.strategy_as_it_is`, in evaluation mode."""
    training = model.training
    try:
        model.train(False)
        return strategy_as_it_is(model)
    finally:
        model.train(training)


def copied_model(model: ExactGP) -> ExactGP:
    """Frozen, and as ``model.eval()`` would be; the training data are shared."""
    assert model.train_inputs is not None
    memo = {id(tensor): tensor for tensor in (*model.train_inputs, model.train_targets)}
    try:
        own = copy.deepcopy(model, memo)
    except Exception as error:  # whatever a model's own attributes raise
        raise ValueError(
            f"the model cannot be copied ({type(error).__name__}: {error}): keep tensors with a graph out of its "
            "attributes"
        ) from error
    return own.eval().requires_grad_(False)


def is_botorchs(model: torch.nn.Module) -> bool:
    """Known without importing BoTorch: who has made such a model has done so."""
    module = sys.modules.get("botorch.models.model")
    return module is not None and isinstance(model, module.Model)


@contextmanager
def recordable_tensors() -> Iterator[None]:
    """No graph; but tensors that autograd may save later, also inside the caller's inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield
