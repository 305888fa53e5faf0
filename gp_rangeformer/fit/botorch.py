"""The fit as BoTorch asks for one: ``fit_gpytorch_mll(mll, optimizer=gp_rangeformer.fit.botorch_optimizer)``."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gpytorch.mlls import ExactMarginalLogLikelihood, MarginalLogLikelihood

from gp_rangeformer import settings
from gp_rangeformer.fit.fit_mll import TOLERANCE, fit_mll
from gp_rangeformer.fit.result import TIMEOUT, USED_UP, Record

_FAR = 10.0  # tolerances: more left to gain than that is no end
_OF_BOTORCH = "_get_loss_closure_exact_internal."  # in botorch.optim.closures.model_closures
_logger = logging.getLogger("gp_rangeformer")
_lock = threading.Lock()
_formers: list[Any] = []  # what contexts that are open have found as BoTorch's optimiser

if TYPE_CHECKING:
    from botorch.optim.core import OptimizationResult


def botorch_optimizer(
    mll: MarginalLogLikelihood,
    parameters: dict[str, Any] | None = None,
    *,
    closure: Callable[..., Any] | None = None,
    callback: Callable[[dict[str, Any], OptimizationResult], None] | None = None,
    timeout_sec: float | None = None,
    tolerance: float = TOLERANCE,
    max_evaluations: int | None = None,
    **others: Any,
) -> OptimizationResult:
    """:func:`~gp_rangeformer.fit.fit_mll` with the signature of BoTorch's optimisers.

    A fit that ends early keeps what it has, as BoTorch's own does at its limits; out of evaluations or of steps that
    gain, it is logged as a warning: one that BoTorch sees would put the start back in the end.

    :param parameters: not supported: parameters to leave alone have ``requires_grad=False``.
    :param closure: a loss of one's own is minimised by BoTorch's default optimiser, as are sums of likelihoods; the one
        that BoTorch makes of ``mll`` and all its free parameters is not one's own.
    :param timeout_sec: ends the fit after the evaluation during which it passes, with the best parameters so far.
    :param others: for BoTorch's default optimiser, where that has to do it.
    """
    from botorch.optim.core import OptimizationResult, OptimizationStatus
    from botorch.optim.fit import fit_gpytorch_mll_scipy

    own_loss = closure is not None and not _is_botorchs(closure, mll)
    if own_loss or parameters is not None or not isinstance(mll, ExactMarginalLogLikelihood):
        return fit_gpytorch_mll_scipy(
            mll, parameters, closure=closure, callback=callback, timeout_sec=timeout_sec, **others
        )
    seen: list[Record] = []

    def watch(record: Record) -> None:
        seen.append(record)
        if callback is not None:
            status = OptimizationStatus.RUNNING
            callback({}, OptimizationResult(len(seen), -record.value, status, runtime=record.seconds))

    result = fit_mll(mll, tolerance=tolerance, max_evaluations=max_evaluations, callback=watch, timeout=timeout_sec)
    status = OptimizationStatus.SUCCESS
    if result.reason == TIMEOUT:
        status = OptimizationStatus.STOPPED
    elif result.reason == USED_UP or result.decrement > max(_FAR * tolerance, result.noise):
        status = OptimizationStatus.STOPPED
        _logger.warning("the fit has not converged: %s", result.summary())
    return OptimizationResult(len(result.history), -result.value, status, result.seconds, result.reason)


def _is_botorchs(closure: Any, mll: MarginalLogLikelihood) -> bool:
    """Whether it is the loss of ``mll`` itself, in all parameters that are free: what BoTorch before 0.18 makes and
    hands to every optimiser."""
    made_by = getattr(getattr(closure, "forward", None), "__qualname__", "")
    fitted = {id(parameter) for parameter in mll.parameters() if parameter.requires_grad}
    return made_by.startswith(_OF_BOTORCH) and {id(one) for one in closure.parameters.values()} == fitted


@contextlib.contextmanager
def botorch_fits() -> Iterator[None]:
    """Inside, the flag is on and ``fit_gpytorch_mll`` uses :func:`botorch_optimizer` where no optimiser is given.

    The optimiser is that of the whole process until the last of such contexts is left.
    """
    from botorch.fit import fit_gpytorch_mll

    # The one function that every method of fitting by maximisation ends in, and its keyword's default.
    defaults = fit_gpytorch_mll.__globals__["_fit_fallback"].__kwdefaults__
    with _lock:
        _formers.append(defaults["optimizer"])
        defaults["optimizer"] = botorch_optimizer
    try:
        with settings.rangeformer():
            yield
    finally:
        with _lock:
            # Threads leave in any order: the first that was entered has found what there was before all of them.
            former = _formers.pop()
            if not _formers:
                defaults["optimizer"] = former
