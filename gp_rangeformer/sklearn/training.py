"""What an estimator was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer import settings

# Numbers in the derivatives of K, n^2 for each free hyperparameter, up to which the plug-in's evaluations cost more
# than what they evaluate. A fit by either path, two columns: as long at n = 250; eight: at n = 130; twenty: at n = 100.
_FEW = 200_000


@dataclass(frozen=True)
class Training:
    """``x``: n x d; ``y``: n or n x q; ``noise``: given variances, n; ``solver``: of ``settings.solver``, None for the
    one that is set; ``device``: of PyTorch."""

    x: NDArray[Any]
    y: NDArray[Any]
    noise: NDArray[Any]
    solver: Any = None
    device: str = "cpu"

    def few(self, free: int) -> bool:
        """Whether scikit-learn's own evaluation of its kernels is the faster one.

        :param free: hyperparameters.
        """
        n = len(self.x)
        asked = self.solver is not None or n >= settings.min_size.value_on(torch.device("cpu"))
        elsewhere = self.x.dtype != np.float64 or torch.device(self.device).type != "cpu"
        return not (asked or elsewhere) and n * n * max(free, 1) <= _FEW

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """A copy, in the dtype and on the device of the computation."""
        plain = np.array(values)  # PyTorch knows no negative strides
        return torch.tensor(plain, dtype=getattr(torch, self.x.dtype.name), device=self.device)
