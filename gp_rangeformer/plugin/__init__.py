"""The only folder that touches GPyTorch's and linear_operator's classes.

Three methods of ``AddedDiagLinearOperator`` (which it inherits) are the entrance: ``inv_quad_logdet``, ``solve`` and
``root_inv_decomposition``. More hooks feed them: ``MultivariateNormal.log_prob`` (with fast log_prob off, BoTorch's
default, it would bypass ``inv_quad_logdet``), ``Kernel.__call__`` (which marks the evaluated matrix with its kernel
module, so that memories of different models stay apart), ``LinearOperator.add_low_rank`` (which sums of kernels
call, and which would factorise without noise) and ``LinearOperator._mul_matrix`` (which would make roots of a kernel
matrix that is not held). With the flag off every hook is a straight call of the original.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version

from gp_rangeformer.plugin import quiet_import  # noqa: F401  before whatever else imports GPyTorch

# isort: split
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.models import ExactGP
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator.operators import AddedDiagLinearOperator, LinearOperator

from gp_rangeformer import settings
from gp_rangeformer.plugin import entrances, hooks, predictions
from gp_rangeformer.plugin.fitted import fitted_bytes, forget_fitted
from gp_rangeformer.plugin.owners import clear_memory as _clear_training_memory
from gp_rangeformer.plugin.owners import remembered_bytes
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.torch_modes import not_compiled

__all__ = ["IncompatibleHostError", "check_host", "clear_memory", "install", "memory_bytes"]


class IncompatibleHostError(ImportError):
    """The installed gpytorch / linear_operator do not have the methods that the flag reroutes."""


_EXPECTED_PARAMETERS = {
    "inv_quad_logdet": ["self", "inv_quad_rhs", "logdet", "reduce_inv_quad"],
    "solve": ["self", "right_tensor", "left_tensor"],
    "root_inv_decomposition": ["self", "initial_vectors", "test_vectors", "method"],
}
_HOOKS = {
    "inv_quad_logdet": not_compiled(hooks.inv_quad_logdet),
    "solve": not_compiled(hooks.solve),
    "root_inv_decomposition": not_compiled(hooks.root_inv_decomposition),
}
_TEST_PRIOR = not_compiled(predictions.test_prior, predictions.original_test_prior)
_EXACT_PREDICTION = not_compiled(predictions.exact_prediction)
_FANTASY_STRATEGY = not_compiled(predictions.fantasy_strategy)
_LOG_PROB = not_compiled(entrances.log_prob, entrances.original_log_prob)
_CALL_KERNEL = not_compiled(entrances.call_kernel)
_ADD_LOW_RANK = not_compiled(entrances.add_low_rank, entrances.original_add_low_rank)
_MULTIPLY_ELEMENTWISE = not_compiled(entrances.multiply_elementwise, entrances.original_multiply)


def check_host() -> None:
    """Compare the host's methods with what the hooks were written for.

    :raises IncompatibleHostError: naming the method and the tested versions.
    """
    for name, expected in _EXPECTED_PARAMETERS.items():
        own = AddedDiagLinearOperator.__dict__.get(name)
        # By module: after a reload the hook of the former module may still be in place.
        if own is not None and getattr(own, "__module__", None) != hooks.__name__:
            _refuse_host(f"AddedDiagLinearOperator now defines its own {name}")
        found = list(inspect.signature(getattr(LinearOperator, name)).parameters)
        if found != expected:
            _refuse_host(f"LinearOperator.{name} takes {found}, expected {expected}")
    if list(inspect.signature(entrances.original_log_prob).parameters) != ["self", "value"]:
        _refuse_host("MultivariateNormal.log_prob has another signature")
    for name in ("covar_cache", "exact_predictive_covar"):
        if not hasattr(DefaultPredictionStrategy, name):
            _refuse_host(f"DefaultPredictionStrategy no longer has {name}")
    # By the code, not on an instance: making the first one imports sympy, half a second (through torch 2.13's
    # broadcast_shapes).
    assigned = inspect.unwrap(AddedDiagLinearOperator.__init__).__code__.co_names
    if not {"_linear_op", "_diag_tensor"} <= set(assigned):
        _refuse_host("AddedDiagLinearOperator no longer keeps its parts as _linear_op and _diag_tensor")


def _refuse_host(difference: str) -> None:
    raise IncompatibleHostError(
        f"gp_rangeformer cannot hook into gpytorch {version('gpytorch')} with linear_operator "
        f"{version('linear_operator')}: {difference}. Tested with gpytorch 1.15.2 and linear_operator 0.6.1 "
        "(pip install gpytorch==1.15.2 linear-operator==0.6.1)"
    )


def install() -> None:
    """Put the hooks in place, once; with the flag off they call the host's methods unchanged."""
    check_host()
    if settings.solver.value() is None:
        settings.solver._set_value(Certified())
    for name, hook in _HOOKS.items():
        setattr(AddedDiagLinearOperator, name, hook)
    MultivariateNormal.log_prob = _LOG_PROB
    Kernel.__call__ = _CALL_KERNEL
    if "generate_roots" in inspect.signature(entrances.original_add_low_rank).parameters:
        LinearOperator.add_low_rank = _ADD_LOW_RANK
    LinearOperator._mul_matrix = _MULTIPLY_ELEMENTWISE
    if _predictions_can_be_served():
        ExactGP._get_test_prior_mean_and_covariances = _TEST_PRIOR
        DefaultPredictionStrategy.exact_prediction = _EXACT_PREDICTION
        DefaultPredictionStrategy.get_fantasy_strategy = _FANTASY_STRATEGY


def clear_memory() -> None:
    """Forget the solutions and landmarks of every model, what was kept for predictions, and the memory kept for kernel
    matrices. The next step starts cold; no answer changes."""
    _clear_training_memory()
    forget_fitted()


def memory_bytes() -> int:
    """Bytes that are kept from calls until now: solutions and landmarks of every model, and what predictions of it
    keep. After a prediction they are at most ``settings.memory_limit``; after a training step so are the former, while
    other models' predictions stay."""
    return remembered_bytes() + fitted_bytes()


def _predictions_can_be_served() -> bool:
    """Whether this GPyTorch asks its strategies as 1.15.2 does; before, it predicts by the other hooks alone."""
    if predictions.original_test_prior is None:
        return False
    found = list(inspect.signature(predictions.original_exact_prediction).parameters)
    return found == ["self", "test_mean", "test_test_covar", "test_train_covar"]
