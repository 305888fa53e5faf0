"""Whether an estimator's parameters can be honoured: asked when it is used, as scikit-learn has it."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels as sk

from gp_rangeformer import settings
from gp_rangeformer.sklearn.supported import KernelError

FIT_MLL = "fit_mll"


def check_parameters(estimator: Any) -> None:
    """:raises ValueError: one that cannot be; the message names it. Of ``alpha`` see :func:`variances`."""
    kernel = estimator.kernel
    if not (kernel is None or isinstance(kernel, str | sk.Kernel | Kernel)):
        raise ValueError(f"kernel must be None, a name, or a kernel of scikit-learn or GPyTorch, got {kernel!r}")
    if isinstance(kernel, Kernel) and kernel.batch_shape:
        raise KernelError(f"the GPyTorch kernel has the batch shape {tuple(kernel.batch_shape)}: it must have none")
    if estimator.optimizer not in (FIT_MLL, None):
        raise ValueError(
            f"optimizer must be {FIT_MLL!r} or None, got {estimator.optimizer!r}: for another one hand "
            "log_marginal_likelihood(theta, eval_gradient=True) to it"
        )
    if estimator.dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {estimator.dtype!r}")
    for name, least in (("n_restarts_optimizer", 0), ("n_targets", 1)):
        value = getattr(estimator, name)
        if value is None and name == "n_targets":
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name in ("normalize_y", "copy_X_train"):
        if not isinstance(getattr(estimator, name), bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {getattr(estimator, name)!r}")
    try:
        torch.empty(0, device=estimator.device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={estimator.device!r} is none that PyTorch has here: {error}") from error
    if isinstance(kernel, Kernel) and estimator.n_restarts_optimizer > 0:
        raise ValueError("n_restarts_optimizer > 0 needs a kernel of scikit-learn: GPyTorch's have no bounds")
    if estimator.solver is not None:
        settings.solver.check(estimator.solver)


def variances(alpha: Any, n: int) -> NDArray[np.float64]:
    """``alpha`` for each of n rows.

    :raises ValueError: it is neither a number of at least 0 nor n of them.
    """
    try:
        found = np.asarray(alpha, np.float64)
    except (TypeError, ValueError):
        found = np.array([np.nan])
    if found.ndim > 1 or found.size not in (1, n) or not bool((np.isfinite(found) & (found >= 0)).all()):
        shown = repr(alpha) if found.size == 1 else f"an array of shape {found.shape}"
        raise ValueError(f"alpha must be a number of at least 0, or {n} of them for the {n} rows of X, got {shown}")
    return np.broadcast_to(found.reshape(-1), n)
