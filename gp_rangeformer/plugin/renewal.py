"""Whether a model is still the one that its prediction strategy was made of, and a new strategy where it is not.

GPyTorch makes a strategy at the first prediction in evaluation mode, from the prior of the training points as it was,
and notices no change before ``train()``. Parameters that are changed in place (``load_state_dict``, ``initialize``)
would meet a prior mean, or the features of a network, of before.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import torch
from gpytorch import Module
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.models import ExactGP
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy, prediction_strategy
from torch import Tensor

from gp_rangeformer.plugin.covered import tensors_of
from gp_rangeformer.plugin.fitted_model import same


class _Made(NamedTuple):
    """What a model was when its strategy was made. A fantasy's strategy has a likelihood of its own."""

    likelihood: weakref.ref[Any]
    tensors: tuple[Tensor, ...]


_made_of: weakref.WeakKeyDictionary[DefaultPredictionStrategy, _Made] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def renew_strategy(model: ExactGP, **kwargs: Any) -> None:
    """Give ``model`` another prediction strategy where its parameters or buffers are not those of the present one.

    :param kwargs: of the model's ``forward``.
    Costs a comparison of every parameter, and once for each strategy the prior of the training points.
    """
    strategy: Any = model.prediction_strategy
    present = tuple(tensors_of(model))
    with _lock:
        known = _made_of.get(strategy)
    another = known is not None and known.likelihood() is not model.likelihood
    if known is not None and not another and same(present, known.tensors):
        return
    if another:
        model.prediction_strategy = None
    strategy = model.prediction_strategy = strategy_as_it_is(model, **kwargs)
    with _lock:
        _made_of[strategy] = _Made(weakref.ref(model.likelihood), tuple(tensor.detach().clone() for tensor in present))


def strategy_as_it_is(model: Any, **kwargs: Any) -> Any:
    """A prediction strategy of the model as it is now: its own, where that still is one, else one that is not kept."""
    inputs = list(model.train_inputs)
    prior = Module.__call__(model, *inputs, **kwargs)  # not ExactGP's own, which would ask for predictions
    own = model.prediction_strategy
    if own is not None and _same_prior(own.train_prior_dist, prior):
        return own
    return prediction_strategy(inputs, prior, model.train_targets, model.likelihood)


def _same_prior(one: Any, other: Any) -> bool:
    """Of means and of what the kernel reads. Parameters of kernel and likelihood are looked at where they are used."""
    lazies = one.lazy_covariance_matrix, other.lazy_covariance_matrix
    if not all(isinstance(lazy, LazyEvaluatedKernelTensor) for lazy in lazies):
        return False
    return torch.equal(one.mean, other.mean) and torch.equal(lazies[0].x1, lazies[1].x1)
