"""Kernels by name: what each of them stands for in scikit-learn's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.gaussian_process import kernels as sk

from gp_rangeformer.sklearn.supported import KernelError

_NAMED: dict[str, Callable[[Any], Any]] = {
    "rbf": lambda lengths: sk.RBF(lengths),
    "matern12": lambda lengths: sk.Matern(lengths, nu=0.5),
    "matern32": lambda lengths: sk.Matern(lengths, nu=1.5),
    "matern52": lambda lengths: sk.Matern(lengths, nu=2.5),
    "rq": lambda lengths: sk.RationalQuadratic(),
    "periodic": lambda lengths: sk.ExpSineSquared(),
    "linear": lambda lengths: sk.DotProduct(),
}
NAMES = tuple(_NAMED)


def named_kernel(name: str, columns: int) -> sk.Kernel:
    """A variance times the kernel, with a length scale for every column where scikit-learn's has them, or a sum of such
    ("linear+rbf"), plus noise; all of them learned.

    :raises KernelError: no such name.
    """
    kernel: Any = sk.WhiteKernel()
    for part in reversed([part.strip() for part in name.split("+")]):
        if part not in _NAMED:
            raise KernelError(f"no kernel {part!r}; by name there are {', '.join(NAMES)}, and sums as in linear+rbf")
        kernel = sk.ConstantKernel() * _NAMED[part](np.ones(columns) if columns > 1 else 1.0) + kernel
    return kernel
