"""L-BFGS on the likelihood, as BoTorch fits: what a model is trained by elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gp_rangeformer.fit.parameters import FreeParameters

_EVALUATIONS = 200  # at most


def maximise(mll: Any, watch: Callable[[float], object]) -> tuple[float, str]:
    """Train ``mll``'s model in place by scipy's L-BFGS-B on float64 vectors of the stored parameters.

    :param watch: called after every evaluation of value and gradient, with the value.
    :returns: the value where it ended, and why it did.
    """
    from scipy.optimize import minimize

    tensors = FreeParameters(mll).tensors
    sizes = [tensor.numel() for tensor in tensors]

    @torch.no_grad()
    def put(vector: np.ndarray) -> None:
        for tensor, part in zip(tensors, torch.from_numpy(vector).split(sizes), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    def negative(vector: np.ndarray) -> tuple[float, np.ndarray]:
        put(vector)
        mll.zero_grad()
        loss = -mll(mll.model(*mll.model.train_inputs), mll.model.train_targets)
        loss.backward()
        watch(-loss.item())
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
        return loss.item(), torch.cat([g.reshape(-1).double() for g in gradients]).numpy()

    start = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).numpy()
    found = minimize(negative, start, jac=True, method="L-BFGS-B", options={"maxfun": _EVALUATIONS})
    put(found.x)
    return -float(found.fun), str(found.message)
