"""The plug-in's flag around what an estimator computes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import gpytorch
import numpy as np
from linear_operator import settings as host_settings
from linear_operator.utils.errors import NanError, NotPSDError

from gp_rangeformer import settings

# The host's settings are the process's: estimators that joblib fits in threads take turns.
_TURN = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child has no thread that would end a turn it was forked in
    os.register_at_fork(after_in_child=lambda: globals().update(_TURN=threading.RLock()))
NOT_FINITE = "the likelihood is not finite with these hyperparameters: scale X and y, or start with others"


@contextlib.contextmanager
def flag(solver: Any) -> Iterator[None]:
    """With the plug-in on, and ``solver`` if it is not None. No jitter is added to K + alpha.

    :raises numpy.linalg.LinAlgError: K + alpha is not positive definite, or holds NaN or infinity.
    """
    chosen = contextlib.nullcontext() if solver is None else settings.solver(solver)
    # The host's own are made in turn: they remember what to put back when they are made. It complains about training
    # points among those of a prediction.
    with _TURN, settings.rangeformer(), chosen, gpytorch.settings.debug(False), host_settings.cholesky_max_tries(0):
        try:
            yield
        except (NotPSDError, NanError) as error:
            raise not_definite(error) from error


def not_definite(error: Exception) -> np.linalg.LinAlgError:
    """What scikit-learn's users know to catch, with the remedies that they have."""
    return np.linalg.LinAlgError(
        "the kernel with these hyperparameters does not return a positive definite matrix: try a larger alpha, a "
        f"WhiteKernel, or X without repeated rows ({error})"
    )


@contextlib.contextmanager
def likelihoods() -> Iterator[None]:
    """Inside :func:`flag`: the plug-in answers at every size, and says where a matrix is not positive definite. What is
    not finite then is for the caller to refuse."""
    with settings.exact_size(1), np.errstate(over="ignore", invalid="ignore"):
        yield
