"""What a fit can be asked for."""

from __future__ import annotations

import math
from typing import Any

from gpytorch.mlls import ExactMarginalLogLikelihood


def checked(
    mll: object, tolerance: object, max_evaluations: Any, timeout: object, levels: object
) -> ExactMarginalLogLikelihood:
    """``mll`` as what it must be, with the other arguments of :func:`~gp_rangeformer.fit.fit_mll`.

    :raises ValueError: one that cannot be, or a model without training data.
    """
    if not isinstance(mll, ExactMarginalLogLikelihood):
        kind = type(mll).__name__
        raise ValueError(
            f"fit_mll needs an ExactMarginalLogLikelihood, got {kind}: fit the parts of a sum one by one, and other "
            "criteria by an optimiser of torch.optim"
        )
    _check_positive("tolerance", tolerance)
    if timeout is not None:
        _check_positive("timeout", timeout)
    whole = isinstance(max_evaluations, int) and not isinstance(max_evaluations, bool)
    if max_evaluations is not None and not (whole and max_evaluations >= 2):
        raise ValueError(f"max_evaluations must be an integer of at least 2, got {max_evaluations!r}")
    if not isinstance(levels, int) or (levels is not False and levels < 1):
        raise ValueError(f"levels must be True, False or a positive number of points, got {levels!r}")
    if mll.model.train_inputs is None or mll.model.train_targets is None:  # type: ignore[attr-defined]
        raise ValueError("the model has no training data: give it some (set_train_data) before it is fitted")
    return mll


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
