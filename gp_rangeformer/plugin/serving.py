"""Which predictions the plug-in answers, by cheap tests before the prior of the test points is made."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from gpytorch import settings as gpytorch_settings
from gpytorch.beta_features import checkpoint_kernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator.operators import AddedDiagLinearOperator
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.plugin.covered import covered, prior_variance
from gp_rangeformer.plugin.crossover import FEW, Reach, float32_does, host_predicts_as_fast
from gp_rangeformer.plugin.tracing import tracing
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.torch_modes import saving_elsewhere, transforming

# Test points up to which GPyTorch's own Cholesky path is as fast where it is the faster one: beyond, its t x t matrix
# costs more than all the rest.
_HOST_POINTS = 1000
# Up to as many a covariance in the graph is one matrix, as GPyTorch's of few points and training points together:
# linear_operator would derive the shape of a sum at every reading, half of a call's time.
DENSE_POINTS = 100

_reaches: weakref.WeakKeyDictionary[DefaultPredictionStrategy, Reach] = weakref.WeakKeyDictionary()


def may_serve(strategy: Any, test_inputs: Any) -> bool:
    """Cheap tests, before the prior of the test points is made."""
    if settings.rangeformer.off() or settings.fused_kernels.off() or isinstance(settings.solver.value(), Direct):
        return False
    if tracing():  # before anything is asked of a tensor
        return False
    if type(strategy) is not DefaultPredictionStrategy or settings.process_group.value() is not None:
        return False
    if gpytorch_settings.observation_nan_policy.value() != "ignore" or checkpoint_kernel.value():
        return False
    if gpytorch_settings.detach_test_caches.off() or gpytorch_settings.lazily_evaluate_kernels.off():
        return False
    if len(test_inputs) != 1 or test_inputs[0].dim() != 2 or len(test_inputs[0]) == 0 or saving_elsewhere():
        return False
    labels, operator = strategy.train_labels, strategy.lik_train_train_covar
    if labels.dim() != 1 or type(operator) is not AddedDiagLinearOperator or transforming():
        return False
    n, x = len(labels), test_inputs[0]
    return n >= settings.exact_size.value() and not _left_to_the_host(strategy, n, x)


def _left_to_the_host(strategy: Any, n: int, x: Tensor) -> bool:
    t, double = len(x), x.dtype == torch.float64
    # So few that GPyTorch evaluates all their kernels at once; in float32 it would sum means in float32 as well.
    at_once = double and n + t <= (gpytorch_settings.max_eager_kernel_size.value() or 0)
    if not at_once and (t > _HOST_POINTS or not host_predicts_as_fast(n, torch.float64, x.device)):
        return False
    as_fast = at_once or double or host_predicts_as_fast(n, x.dtype, x.device)
    if not as_fast and not ((n < FEW or _repeated(x)) and of_covered_kernel(strategy)):
        return False
    known = _reach(strategy)
    if known is None:
        return as_fast
    return (as_fast or float32_does(n, known.condition)) and not known.exceeded(x)


def _repeated(x: Tensor) -> bool:
    """Whether this may be one of many calls that ask for gradients in few points: with a root of A^-1 at hand GPyTorch
    takes 2 ms for them, a third less than means summed in float64 (n = 500, 5 points)."""
    differentiated = x.requires_grad and torch.is_grad_enabled()
    return len(x) <= DENSE_POINTS and differentiated and bool(gpytorch_settings.fast_pred_var.on())


def of_covered_kernel(strategy: Any) -> bool:
    trained: Any = strategy.lik_train_train_covar._linear_op
    return type(trained) is LazyEvaluatedKernelTensor and covered(trained.kernel)


def _reach(strategy: Any) -> Reach | None:
    operator: Any = strategy.lik_train_train_covar
    trained: Any = operator._linear_op
    if type(trained) is not LazyEvaluatedKernelTensor:
        return None
    known = _reaches.get(strategy)
    if known is None or not known.describes(trained.kernel):
        condition = math.inf
        if covered(trained.kernel):
            noise = float(operator._diag_tensor._diagonal().detach().amin())
            condition = (prior_variance(trained.kernel) + noise) / noise if noise > 0 else math.inf
        known = _reaches[strategy] = Reach.of(trained.kernel, strategy.train_inputs[0], condition)
    return known
