"""The hooks that lead to the three: log_prob when fast log_prob is off, the owner's mark on a kernel matrix, and sums
and products of kernels without their roots."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from gpytorch.beta_features import checkpoint_kernel
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.settings import lazily_evaluate_kernels, observation_nan_policy
from linear_operator import settings as host_settings
from linear_operator.operators import (
    AddedDiagLinearOperator,
    BatchRepeatLinearOperator,
    DenseLinearOperator,
    LinearOperator,
)
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.plugin.crossover import FEW, host_predicts_as_fast
from gp_rangeformer.plugin.eligibility import decline_reason
from gp_rangeformer.plugin.fused_operator import FusedLinearOperator
from gp_rangeformer.plugin.likelihood import likelihood_terms
from gp_rangeformer.plugin.owners import mark_owner
from gp_rangeformer.plugin.predictions import put_off, putting_off
from gp_rangeformer.plugin.recognition import evaluate_fused
from gp_rangeformer.plugin.reports import report_declined
from gp_rangeformer.plugin.tracing import tracing
from gp_rangeformer.plugin.unevaluated import unevaluated
from gp_rangeformer.report import collect_reports
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.torch_modes import no_autocast, saving_elsewhere


def log_prob(self: MultivariateNormal, value: Tensor) -> Tensor:
    """GPyTorch's log_prob; where the user has fast log_prob off, eligible covariances still meet inv_quad_logdet.

    Written out for that case, not reached by switching the host's setting: settings are seen from other threads, and
    every *other* operator would go from Cholesky to CG.
    """
    if settings.rangeformer.off() or not self.islazy:
        return original_log_prob(self, value)
    covariance = self.lazy_covariance_matrix
    if type(covariance) is AddedDiagLinearOperator and isinstance(value, Tensor):
        if self._validate_args:
            self._validate_sample(value)
        difference = value - self.loc
        found = _of_unevaluated(covariance, difference)
        if found is not None:
            return found
    base = covariance.base_linear_op if isinstance(covariance, BatchRepeatLinearOperator) else covariance
    if type(base) is not AddedDiagLinearOperator or host_settings.fast_computations.log_prob.on():
        return _counted_log_prob(self, value, base)
    reason = decline_reason(base)
    if reason is not None:
        report_declined("inv_quad_logdet", base, reason, columns=1)
        return original_log_prob(self, value)
    if self._validate_args:
        self._validate_sample(value)
    difference = value - self.loc
    batch_shape = difference.shape[:-1]
    if len(batch_shape) < covariance.dim() - 2:
        difference = difference.expand(covariance.shape[:-1])
    elif batch_shape != covariance.batch_shape:
        # Several label vectors: repeated lazily, which makes them columns of one system.
        padded = (*(1 for _ in range(len(batch_shape) + 2 - covariance.dim())), *covariance.batch_shape)
        covariance = covariance.repeat(*(own // single for own, single in zip(batch_shape, padded, strict=True)), 1, 1)
    inv_quad, logdet = covariance.evaluate_kernel().inv_quad_logdet(difference.unsqueeze(-1), logdet=True)
    return -0.5 * (inv_quad + logdet + difference.shape[-1] * math.log(2 * math.pi))


def _of_unevaluated(covariance: AddedDiagLinearOperator, difference: Tensor) -> Tensor | None:
    """log p of targets minus mean, of as many as there are covariances; None for the long way."""
    system = unevaluated(covariance, difference.shape) if difference.dim() else None
    if system is None or (system.noise.dtype, system.noise.device) != (difference.dtype, difference.device):
        return None
    with no_autocast():
        inv_quad, logdet = likelihood_terms(system, difference.unsqueeze(-1))
        return -0.5 * (inv_quad.squeeze(-1) + logdet + difference.shape[-1] * math.log(2 * math.pi))


def _counted_log_prob(self: MultivariateNormal, value: Tensor, covariance: LinearOperator) -> Tensor:
    """The host's. What the kernel evaluates to may have methods of its own, which pass by the hooks and the report."""
    with collect_reports(own_thread=True) as reports:
        result = original_log_prob(self, value)
    if not reports:
        masked = observation_nan_policy.value() != "ignore"
        reason = Reason.NAN_POLICY if masked else Reason.OTHER_OPERATOR
        report_declined("inv_quad_logdet", covariance, reason, columns=1)
    return result


def call_kernel(self: Kernel, *args: Any, **kwargs: Any) -> Any:
    """Evaluate tile by tile what is recognised, and mark what a kernel evaluates to: the outermost one returns last.

    Not a hook on LazyEvaluatedKernelTensor.evaluate_kernel, which calls this: kernels are evaluated eagerly where the
    user, or another thread inside evaluate_kernel, has switched lazy evaluation off.
    """
    if settings.rangeformer.off() and not putting_off():
        return original_call_kernel(self, *args, **kwargs)
    result = None if _nesting.depth else _put_off_or_fused(self, *args, **kwargs)
    if result is None:
        _nesting.depth += 1
        try:
            result = original_call_kernel(self, *args, **kwargs)
        finally:
            _nesting.depth -= 1
    if settings.rangeformer.off() or checkpoint_kernel.value() or isinstance(result, LazyEvaluatedKernelTensor):
        return result
    if isinstance(result, LinearOperator):
        mark_owner(result, self)
    return result


def add_low_rank(self: LinearOperator, low_rank_mat: Any, *args: Any, **kwargs: Any) -> LinearOperator:
    """A + B B'. Inside a kernel's evaluation, where linear kernels come after others, without roots: GPyTorch makes
    those from a factorisation of A, which has no noise, and a singular value decomposition. No solve makes use of them.
    """
    if _nesting.depth and settings.rangeformer.on():
        kwargs["generate_roots"] = False
    return original_add_low_rank(self, low_rank_mat, *args, **kwargs)


def multiply_elementwise(self: LinearOperator, other: Any) -> LinearOperator:
    """A * B entry by entry, of which one is a kernel matrix that is not held: dense, as GPyTorch makes it of one that
    is. Elsewhere it makes roots of both, of low rank by Lanczos.

    :raises InsufficientMemoryError: if it does not fit.
    """
    if settings.rangeformer.on():
        one, two = self.evaluate_kernel(), other.evaluate_kernel()
        if isinstance(one, FusedLinearOperator) or isinstance(two, FusedLinearOperator):
            return DenseLinearOperator(one.to_dense() * two.to_dense())
    return original_multiply(self, other)


def _put_off_or_fused(
    kernel: Kernel, x1: Tensor, x2: Tensor | None = None, *args: Any, **kwargs: Any
) -> LinearOperator | None:
    if not args and not kwargs.get("diag") and lazily_evaluate_kernels.off():
        params = {name: value for name, value in kwargs.items() if name != "diag"}
        later = put_off(kernel, x1, x2, **params)
        if later is not None:
            return later
    return _fused(kernel, x1, x2, *args, **kwargs)


class _Nesting(threading.local):
    """How many kernels' own evaluations are on the call stack: a kernel inside another one is that one's business."""

    depth = 0


_nesting = _Nesting()


def _fused(
    kernel: Kernel,
    x1: Tensor,
    x2: Tensor | None = None,
    diag: bool = False,
    last_dim_is_batch: bool = False,
    **params: Any,
) -> LinearOperator | None:
    """The fused evaluation of a training matrix, or None: not now, not this kernel, or not one set of points."""
    if x2 is not None and x2.shape != x1.shape:  # first: of every prediction's two matrices one is such
        return None
    if settings.rangeformer.off() or settings.fused_kernels.off() or lazily_evaluate_kernels.on() or tracing():
        return None
    if diag or last_dim_is_batch or params or checkpoint_kernel.value() or observation_nan_policy.value() != "ignore":
        return None
    if saving_elsewhere():
        # A checkpoint evaluates again what it saw, and must see the same. Inside another kernel's code this one is not
        # looked at the first time, and would be the second.
        return None
    if x1.dim() != 2 or len(x1) < settings.exact_size.value():
        return None
    if not kernel.training and _of_few_points(x1):
        return None
    if x2 is not None and not _one_set(x1, x2):
        return None
    return evaluate_fused(kernel, x1)


def _of_few_points(x: Tensor) -> bool:
    """Whether GPyTorch makes a matrix of a prediction in less time, as it is mostly the one to factorise it."""
    left = host_predicts_as_fast(len(x), x.dtype, x.device)
    return left or (len(x) < FEW and host_predicts_as_fast(len(x), torch.float64, x.device))


def _one_set(x1: Tensor, x2: Tensor) -> bool:
    """Whether ``kernel(x1, x2)`` may be taken for ``kernel(x1)``: the same tensor, or equal numbers of which none asks
    for a gradient. Two tensors that do are two arguments, each with its own, however equal they are now."""
    if x2 is x1:
        return True
    if torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad):
        return False
    return x1.dtype == x2.dtype and torch.equal(x1, x2)


# Kept on the hooks, so that a reloaded module finds the host's methods and not its own former hooks.
original_log_prob = getattr(MultivariateNormal.log_prob, "original", MultivariateNormal.log_prob)
original_call_kernel = getattr(Kernel.__call__, "original", Kernel.__call__)
original_multiply = getattr(LinearOperator._mul_matrix, "original", LinearOperator._mul_matrix)
original_add_low_rank = getattr(LinearOperator.add_low_rank, "original", LinearOperator.add_low_rank)
add_low_rank.original = original_add_low_rank  # type: ignore[attr-defined]
multiply_elementwise.original = original_multiply  # type: ignore[attr-defined]
log_prob.original = original_log_prob  # type: ignore[attr-defined]
call_kernel.original = original_call_kernel  # type: ignore[attr-defined]
