"""What a kernel says before there are targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels as sk

START_NOISE = 1.0  # beside a GPyTorch kernel, of normalised targets


def prior_spread(kernel: sk.Kernel | Kernel, x: NDArray[Any], covariance: bool, device: str) -> NDArray[Any]:
    """Variances, t, or covariances, t x t, of observations at t points, without given noise."""
    if isinstance(kernel, sk.Kernel):
        own: Any = kernel
        return own(x) if covariance else own.diag(x)
    points = torch.tensor(np.array(x), device=device)  # PyTorch knows no negative strides
    with torch.no_grad():
        found = kernel.to(points)(points)
        known = found.to_dense() if covariance else found.diagonal(dim1=-1, dim2=-2)
    return known.cpu().numpy() + START_NOISE * (np.eye(len(x)) if covariance else 1.0)
