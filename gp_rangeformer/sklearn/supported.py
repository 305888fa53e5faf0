"""Which kernels of scikit-learn have a counterpart here, and how much of k(x, x) is white noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.gaussian_process import kernels as sk

LEAVES = (
    sk.ConstantKernel,
    sk.WhiteKernel,
    sk.RBF,
    sk.Matern,
    sk.RationalQuadratic,
    sk.ExpSineSquared,
    sk.DotProduct,
)
_MOST_FACTORS = 16  # of a kernel to a power: each is evaluated


class KernelError(ValueError):
    """A kernel that this estimator cannot represent; the message names what it can."""


def check_kernel(kernel: Any, columns: int) -> None:
    """:raises KernelError: the kernel has no counterpart for points with so many columns; the message names the part
    that has none."""
    for leaf in leaves(kernel):
        _check_leaf(leaf, columns)
    variances_of(kernel)


def leaves(kernel: Any) -> Iterator[Any]:
    """What sums, products and powers are made of, in the order of theta.

    :raises KernelError: a power that is no whole number.
    """
    kind = type(kernel)
    if kind in (sk.Sum, sk.Product):
        yield from leaves(kernel.k1)
        yield from leaves(kernel.k2)
    elif kind is sk.Exponentiation:
        exponent = kernel.exponent
        if exponent != int(exponent) or not 1 <= exponent <= _MOST_FACTORS:
            raise KernelError(f"exponent {exponent}: kernels may be raised to whole powers from 1 to {_MOST_FACTORS}")
        yield from leaves(kernel.kernel)
    else:
        yield kernel


def _check_leaf(kernel: Any, columns: int) -> None:
    kind = type(kernel)
    if kind not in LEAVES:
        known = ", ".join(leaf.__name__ for leaf in LEAVES)
        raise KernelError(
            f"{kind.__name__} has no counterpart here: take sums, products and whole powers of {known}; a GPyTorch "
            "kernel; or scikit-learn's own GaussianProcessRegressor"
        )
    if kind is sk.Matern and kernel.nu not in (0.5, 1.5, 2.5, math.inf):
        raise KernelError(f"Matern with nu={kernel.nu}: nu may be 0.5, 1.5, 2.5 or infinity")
    if kind is sk.ExpSineSquared and columns != 1:
        raise KernelError(
            f"ExpSineSquared needs X of one column, got {columns}: the sine of a distance in several dimensions is no "
            "covariance. A GPyTorch PeriodicKernel takes a product over the columns"
        )
    if kind in (sk.RBF, sk.Matern) and np.size(kernel.length_scale) not in (1, columns):
        lengths = np.size(kernel.length_scale)
        raise KernelError(f"{kernel} has {lengths} length scales, X has {columns} columns")
    for hyperparameter in kernel.hyperparameters:
        if hyperparameter.fixed:
            continue
        lower, upper = np.atleast_2d(hyperparameter.bounds).T
        if not bool(((lower >= 0) & (lower < upper)).all()):
            raise KernelError(
                f"{hyperparameter.name}_bounds of {kernel}: the lower bound is at least 0 and below the upper one; "
                '"fixed" keeps a value'
            )


@dataclass(frozen=True)
class Variances:
    """The two parts of k(x, x). ``smooth``: without white noise; None where it depends on x, 0 where there is none.
    ``white``: of the noise; None where there is none."""

    smooth: float | None
    white: float | None = None

    def __add__(self, other: Variances) -> Variances:
        smooth = None if self.smooth is None or other.smooth is None else self.smooth + other.smooth
        white = [part.white for part in (self, other) if part.white is not None]
        return Variances(smooth, sum(white) if white else None)

    def __mul__(self, other: Variances) -> Variances:
        for one, beside in ((self, other), (other, self)):
            if one.white is not None and beside.smooth is None:
                raise KernelError(
                    "WhiteKernel times DotProduct is noise that grows with x: alpha takes given variances"
                )
        smooth = None if self.smooth is None or other.smooth is None else self.smooth * other.smooth
        if self.white is None and other.white is None:
            return Variances(smooth)
        first, second = self.white or 0.0, other.white or 0.0
        return Variances(smooth, first * second + first * (other.smooth or 0.0) + second * (self.smooth or 0.0))


def variances_of(kernel: Any) -> Variances:
    """:raises KernelError: WhiteKernel times DotProduct, which has no counterpart."""
    kind = type(kernel)
    if kind is sk.Sum:
        return variances_of(kernel.k1) + variances_of(kernel.k2)
    if kind is sk.Product:
        return variances_of(kernel.k1) * variances_of(kernel.k2)
    if kind is sk.Exponentiation:
        found = base = variances_of(kernel.kernel)
        for _ in range(int(kernel.exponent) - 1):
            found = found * base
        return found
    if kind is sk.WhiteKernel:
        return Variances(0.0, float(kernel.noise_level))
    if kind is sk.ConstantKernel:
        return Variances(float(kernel.constant_value))
    return Variances(None if kind is sk.DotProduct else 1.0)
