"""The two hooks that lead to the three: log_prob when fast log_prob is off, and the owner's mark on a kernel matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gpytorch.beta_features import checkpoint_kernel
from gpytorch.distributions import MultivariateNormal
from gpytorch.lazy import LazyEvaluatedKernelTensor
from linear_operator import settings as host_settings
from linear_operator.operators import AddedDiagLinearOperator, BatchRepeatLinearOperator, LinearOperator
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.backend.eligibility import eligible
from gp_rangeformer.backend.memories import mark_owner
from gp_rangeformer.solvers.reason import Reason

original_log_prob = MultivariateNormal.log_prob
original_evaluate_kernel = LazyEvaluatedKernelTensor.evaluate_kernel
_forced_log_prob = 0


@contextlib.contextmanager
def _force_log_prob() -> Iterator[None]:
    """Fast log_prob on, remembering that the user has it off."""
    global _forced_log_prob
    with host_settings._fast_log_prob(True):
        _forced_log_prob += 1
        try:
            yield
        finally:
            _forced_log_prob -= 1


def user_log_prob() -> contextlib.AbstractContextManager[object]:
    """The user's own choice of fast log_prob, for operators that are declined."""
    return host_settings._fast_log_prob(False) if _forced_log_prob else contextlib.nullcontext()


def log_prob(self: MultivariateNormal, value: Tensor) -> Tensor:
    """GPyTorch's log_prob; where the user has fast log_prob off, eligible covariances still meet inv_quad_logdet.

    Switching fast log_prob on for the whole context would send every *other* operator from Cholesky to CG.
    """
    if settings.rangeformer.off() or host_settings._fast_log_prob.on() or not self.islazy:
        return original_log_prob(self, value)
    covariance = self.lazy_covariance_matrix
    if isinstance(covariance, BatchRepeatLinearOperator):
        covariance = covariance.base_linear_op
    if type(covariance) is not AddedDiagLinearOperator or isinstance(eligible(covariance), Reason):
        return original_log_prob(self, value)
    with _force_log_prob():
        return original_log_prob(self, value)


def evaluate_kernel(self: LazyEvaluatedKernelTensor) -> LinearOperator:
    result = original_evaluate_kernel(self)
    if settings.rangeformer.on() and not checkpoint_kernel.value():
        mark_owner(result, self.kernel)
    return result
