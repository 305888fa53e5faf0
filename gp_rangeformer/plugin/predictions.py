"""The hooks of a prediction: K(test, all) stays unevaluated, and a posterior is made as far as it is asked for.

GPyTorch evaluates the t x t covariance of the test points and their t x n one with the training points before it asks
its prediction strategy, whatever is wanted. So the kernels that :meth:`ExactGP._get_test_prior_mean_and_covariances`
evaluates itself are put off (:class:`PutOff`), and :meth:`DefaultPredictionStrategy.exact_prediction` takes their
points instead. What is not served here gets the evaluated matrices, as without the flag. A third hook,
:meth:`DefaultPredictionStrategy.get_fantasy_strategy`, hands on what is solved.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from gpytorch import settings as gpytorch_settings
from gpytorch.kernels import Kernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.models import ExactGP
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from gpytorch.utils.memoize import _is_in_cache_ignore_all_args
from linear_operator.operators import LinearOperator
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.allocation.free_cores import free_cores
from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.covered import covered
from gp_rangeformer.plugin.fitted import ROUNDED, continues, fitted_model
from gp_rangeformer.plugin.fitted_model import FittedModel
from gp_rangeformer.plugin.posterior import Posterior
from gp_rangeformer.plugin.predictive_covariance import PredictiveCovariance, PredictiveCovarianceOperator
from gp_rangeformer.plugin.recognition import recognise_selected
from gp_rangeformer.plugin.renewal import renew_strategy, strategy_as_it_is
from gp_rangeformer.plugin.serving import DENSE_POINTS, may_serve, of_covered_kernel
from gp_rangeformer.plugin.tracing import untraced
from gp_rangeformer.torch_modes import no_autocast, transforming


class _Putting(threading.local):
    """Of this thread: whether matrices are left unevaluated, those of one set of points too."""

    off = whole = False


_putting = _Putting()


class PutOff(LazyEvaluatedKernelTensor):
    """A kernel matrix that is evaluated when it is read, and not before."""

    def _size(self) -> torch.Size:
        # GPyTorch walks over the kernel and its parts for their batches, 12 to 40 microseconds.
        points = self.x1.dim() == self.x2.dim() == 2 and not self.last_dim_is_batch
        if points and covered(self.kernel, itself=False):
            return torch.Size([len(self.x1), len(self.x2)])
        return super()._size()

    def evaluate_kernel(self) -> LinearOperator:
        with _put_off(False):
            return super().evaluate_kernel()


@contextlib.contextmanager
def _put_off(off: bool, whole: bool = False) -> Iterator[None]:
    before = _putting.off, _putting.whole
    _putting.off, _putting.whole = off, whole
    try:
        yield
    finally:
        _putting.off, _putting.whole = before


def putting_off() -> bool:
    """Whether some matrices are left unevaluated in this thread now."""
    return _putting.off


def put_off(kernel: Kernel, x1: Tensor, x2: Tensor | None, **params: Any) -> PutOff | None:
    """The unevaluated matrix of a kernel that a prediction has called, or None: not now."""
    if not _putting.off or (x2 is None and not _putting.whole):
        return None
    return PutOff(x1, x1 if x2 is None else x2, kernel=kernel, **params)


@contextlib.contextmanager
def unevaluated_kernels() -> Iterator[None]:
    """What a model's ``forward`` makes of its kernel stays unevaluated in this thread, whatever others set."""
    with _put_off(True, whole=True):
        yield


def test_prior(self: ExactGP, train_inputs: Any, test_inputs: Any, **kwargs: Any) -> Any:
    """The host's, with the matrices left unevaluated where a prediction may be served."""
    if torch.jit.is_tracing():
        _fill_caches(self, test_inputs, **kwargs)
    if not may_serve(self.prediction_strategy, test_inputs):
        return original_test_prior(self, train_inputs, test_inputs, **kwargs)
    known = of_covered_kernel(self.prediction_strategy)
    # The host answers for other kernels: of a strategy that it has not used yet, which is new, it makes the most.
    if known or _memoised(self.prediction_strategy):
        renew_strategy(self, **kwargs)
    with _put_off(known and of_covered_kernel(self.prediction_strategy)):
        return original_test_prior(self, train_inputs, test_inputs, **kwargs)


def _memoised(strategy: Any) -> bool:
    return bool(getattr(strategy, "_memoize_cache", None))


def _fill_caches(model: Any, test_inputs: Any, **kwargs: Any) -> None:
    """What the host's first prediction leaves with a strategy, and one that was served does not: a trace cannot contain
    how it is made. Of the model as it is now."""
    with untraced():
        if not may_serve(model.prediction_strategy, test_inputs):
            return
        if not _is_in_cache_ignore_all_args(model.prediction_strategy, "mean_cache"):
            model.prediction_strategy = None
            model.prediction_strategy = strategy_as_it_is(model, **kwargs)
        strategy = model.prediction_strategy
        _ = strategy.mean_cache
        if gpytorch_settings.fast_pred_var.on() and gpytorch_settings.skip_posterior_variances.off():
            _ = strategy.covar_cache


@free_cores()
def exact_prediction(
    self: DefaultPredictionStrategy, test_mean: Tensor, test_test_covar: Any, test_train_covar: Any
) -> tuple[Tensor, Any]:
    """Mean and covariance of f at test points.

    In: K(test, test) and K(test, train), unevaluated. Out: the mean, t, in the graph where there is one; the covariance
    as an operator that makes its diagonal, or all of itself, when it is read, or evaluated as by the host where a
    gradient may be asked of it. Kept with the strategy: A^-1 (y - m), and what variances need. Reports are published.
    """
    if not isinstance(test_train_covar, PutOff) or not isinstance(test_test_covar, PutOff):
        return original_exact_prediction(self, test_mean, test_test_covar, test_train_covar)
    cross = None if transforming() or settings.rangeformer.off() else _cross(self, test_mean, test_train_covar)
    fitted = None if cross is None else fitted_model(self)
    if cross is None or fitted is None or not _of_one_kernel(fitted, cross):
        evaluated = test_test_covar.evaluate_kernel(), test_train_covar.evaluate_kernel()
        return original_exact_prediction(self, test_mean, *evaluated)
    with no_autocast():
        # Rounding of K(test, train) would make a mean jump from point to point, beside what rounding of K moves it by.
        exact = cross.widened() if fitted.moved > ROUNDED else cross
        mean = exact.product(fitted.solution).squeeze(-1).to(test_mean.dtype) + test_mean
        mean = torch.where(cross.known, mean, math.nan)
    if gpytorch_settings.skip_posterior_variances.on() or _in_a_graph(cross):
        matrices: Any = test_test_covar.evaluate_kernel(), test_train_covar.evaluate_kernel()
        if cross.t <= DENSE_POINTS:
            matrices = matrices[0].to_dense(), matrices[1].to_dense()
        return mean, self.exact_predictive_covar(*matrices)
    return mean, _covariance(self, fitted, cross, test_test_covar, test_train_covar)


def _covariance(
    strategy: DefaultPredictionStrategy, fitted: FittedModel, cross: CrossKernel, test_test: PutOff, test_train: PutOff
) -> LinearOperator:
    fast = bool(gpytorch_settings.fast_pred_var.on())

    def by_host() -> Tensor:
        """The dense matrix, as GPyTorch makes it, with the settings of the prediction."""
        with settings.rangeformer(), settings.solver(fitted.solver), gpytorch_settings.fast_pred_var(fast):
            covariance: Any = strategy.exact_predictive_covar(test_test.evaluate_kernel(), test_train.evaluate_kernel())
            return covariance.to_dense()

    posterior = Posterior(fitted, cross, by_host, lambda: fitted.describes(strategy))
    like = torch.empty(0, dtype=cross.dtype, device=cross.device)
    return PredictiveCovarianceOperator.of(
        PredictiveCovariance(posterior.variances, posterior.covariance, cross.t, like)
    )


def _cross(strategy: Any, test_mean: Tensor, test_train: PutOff) -> CrossKernel | None:
    """Of the kernel that the training points have, if it has a fused form; in the graph of its points and parameters,
    where the prediction has one."""
    trained = strategy.lik_train_train_covar._linear_op
    if type(trained) is not LazyEvaluatedKernelTensor:
        return None
    if test_train.params or test_train.last_dim_is_batch or test_mean.dim() != 1:
        return None
    x, others = test_train.x2, test_train.x1
    if x.dim() != 2 or others.dim() != 2 or len(others) != len(test_mean) or x.dtype != others.dtype:
        return None
    with torch.set_grad_enabled(test_train._is_grad_enabled), no_autocast():
        fused = recognise_selected(test_train.kernel, x)
        if not isinstance(fused, FusedKernel) or fused.arguments[0].device != others.device:
            return None
        return CrossKernel(fused.expression, x, others, fused.parameters)


def _of_one_kernel(fitted: FittedModel, cross: CrossKernel) -> bool:
    """By its values: a fantasy model has a copy of the kernel that its training points were given."""
    if fitted.fused.expression != cross.expression or len(fitted.fused.parameters) != len(cross.parameters):
        return False
    pairs = zip(fitted.fused.parameters, cross.parameters, strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def fantasy_strategy(
    self: DefaultPredictionStrategy,
    inputs: Any,
    targets: Tensor,
    full_inputs: Any,
    full_targets: Tensor,
    full_output: Any,
    **kwargs: Any,
) -> Any:
    """Of the training points and a few more, m.

    Without a graph, for one model and one set of further points: nothing is computed now; a prediction appends to the
    factor of before, or solves for all targets from the solution of before. The kernel is as it is now. Else the
    host's, whose errors come now: an inverse root, once.
    """
    covariance = full_output.lazy_covariance_matrix
    served = not torch.is_grad_enabled() and type(covariance) is LazyEvaluatedKernelTensor and full_targets.dim() == 1
    # Noise for a likelihood that has its own is a matter of the host.
    served = served and (not kwargs or isinstance(self.likelihood, FixedNoiseGaussianLikelihood))
    served = served and may_serve(self, inputs) and bool(inputs[0].isfinite().all() & targets.isfinite().all())
    known = fitted_model(self) if served else None
    if known is None:
        return original_fantasy_strategy(self, inputs, targets, full_inputs, full_targets, full_output, **kwargs)
    self.fantasy_inputs, self.fantasy_targets = inputs, targets
    own = LazyEvaluatedKernelTensor(
        covariance.x1,
        covariance.x2,
        kernel=copy.deepcopy(covariance.kernel),
        last_dim_is_batch=covariance.last_dim_is_batch,
        **covariance.params,
    )
    prior = type(self.train_prior_dist)(full_output.mean.clone(), own)
    likelihood: Any = self.likelihood
    found = type(self)(full_inputs, prior, full_targets, likelihood.get_fantasy_likelihood(**kwargs))
    continues(found, known)
    return found


def _in_a_graph(cross: CrossKernel) -> bool:
    return torch.is_grad_enabled() and any(argument.requires_grad for argument in cross.arguments)


# Kept on the hooks, so that a reloaded module finds the host's methods and not its own former hooks.
_TEST_PRIOR = "_get_test_prior_mean_and_covariances"
_host_test_prior = getattr(ExactGP, _TEST_PRIOR, None)
original_test_prior: Any = getattr(_host_test_prior, "original", _host_test_prior)
original_exact_prediction: Any = getattr(
    DefaultPredictionStrategy.exact_prediction, "original", DefaultPredictionStrategy.exact_prediction
)
original_fantasy_strategy: Any = getattr(
    DefaultPredictionStrategy.get_fantasy_strategy, "original", DefaultPredictionStrategy.get_fantasy_strategy
)
fantasy_strategy.original = original_fantasy_strategy  # type: ignore[attr-defined]
test_prior.original = original_test_prior  # type: ignore[attr-defined]
exact_prediction.original = original_exact_prediction  # type: ignore[attr-defined]
