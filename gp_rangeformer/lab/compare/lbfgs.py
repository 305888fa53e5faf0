"""L-BFGS on the likelihood, by the optimiser that BoTorch fits with: what a model is trained by elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from linear_operator.utils.errors import NanError, NotPSDError

from gp_rangeformer.fit.parameters import FreeParameters

_EVALUATIONS = 200  # at most


def maximise(mll: Any, watch: Callable[[float], object]) -> tuple[float, str]:
    """Train ``mll``'s model in place by scipy's L-BFGS-B, with its defaults, on float64 vectors of the stored
    parameters.

    Where float32 has no factor of the matrix, which a line search may try, it begins anew in float64 from the best
    point so far. BoTorch's ``fit_gpytorch_mll`` begins at points drawn from the priors then, and fails where there are
    none; it asks for float64 models from the start.

    :param watch: called after every evaluation of value and gradient, with the value.
    :returns: the value where it ended, and why it did.
    """
    search = _Search(mll, watch)
    try:
        return search.run()
    except (NanError, NotPSDError):
        dtype = search.tensors[0].dtype
        if dtype == torch.float64 or search.best is None:
            raise
        begun = search.evaluations
        with _widened(mll, dtype):
            value, reason = search.run()
        return value, f"{reason}, in float64 from evaluation {begun + 1} on"


class _Search:
    """What two searches of one model share: its parameters, the best ones met, and how often it was evaluated."""

    def __init__(self, mll: Any, watch: Callable[[float], object]) -> None:
        self.mll, self.watch = mll, watch
        self.tensors = FreeParameters(mll).tensors
        self.evaluations, self.least = 0, np.inf
        self.best: np.ndarray | None = None

    def run(self) -> tuple[float, str]:
        """From the best point met, if there is one."""
        from scipy.optimize import minimize

        start = torch.cat([tensor.detach().reshape(-1).double() for tensor in self.tensors]).numpy()
        options = {"maxfun": _EVALUATIONS - self.evaluations}
        begin = start if self.best is None else self.best
        found = minimize(self._negative, begin, jac=True, method="L-BFGS-B", options=options)
        self._put(found.x)
        return -float(found.fun), str(found.message)

    @torch.no_grad()
    def _put(self, vector: np.ndarray) -> None:
        sizes = [tensor.numel() for tensor in self.tensors]
        for tensor, part in zip(self.tensors, torch.from_numpy(vector).split(sizes), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    def _negative(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        self._put(vector)
        self.mll.zero_grad()
        loss = -self.mll(self.mll.model(*self.mll.model.train_inputs), self.mll.model.train_targets)
        loss.backward()
        self.evaluations += 1
        self.watch(-loss.item())
        if loss.item() < self.least:
            self.least, self.best = loss.item(), vector.copy()
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in self.tensors]
        return loss.item(), torch.cat([g.reshape(-1).double() for g in gradients]).numpy()


@contextlib.contextmanager
def _widened(mll: Any, dtype: torch.dtype) -> Iterator[None]:
    """Model and data in float64 inside, in ``dtype`` again afterwards."""
    model = mll.model
    inputs, targets = model.train_inputs, model.train_targets
    mll.zero_grad()  # gradients keep the dtype that they were made in
    try:
        mll.double()
        model.set_train_data(tuple(x.double() for x in inputs), targets.double(), strict=False)
        yield
    finally:
        mll.zero_grad()
        mll.to(dtype)
        model.set_train_data(inputs, targets, strict=False)
