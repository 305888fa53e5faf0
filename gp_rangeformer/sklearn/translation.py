"""Kernels of scikit-learn as GPyTorch's, with the same values, hyperparameters and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.kernels import ConstantKernel as HostConstantKernel
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels as sk
from torch import Tensor

from gp_rangeformer.sklearn.host_kernels import DenseProductKernel, DotProductKernel, Level
from gp_rangeformer.sklearn.log_scale import register
from gp_rangeformer.sklearn.supported import check_kernel

# A sum of products of numbers, each of them an attribute of a module.
Number = tuple[Any, str]
Polynomial = list[tuple[Number, ...]]


@dataclass
class Translated:
    """``covariance``: without white noise; None if there is nothing else. ``diagonal``: k(x, x) of it where that is one
    number, else None. ``white``: the variance of the white noise. ``free``: the parameters that a fit may change, as
    modules and names, in the order of scikit-learn's theta."""

    covariance: Kernel | None
    diagonal: Polynomial | None
    white: Polynomial = field(default_factory=list)
    free: list[Number] = field(default_factory=list)

    def theta(self) -> NDArray[np.float64]:
        """As the parameters are now."""
        if not self.free:
            return np.array([])
        return torch.cat([value.detach().double().cpu().reshape(-1) for value in map(_value, self.free)]).log().numpy()

    def theta_gradient(self) -> NDArray[np.float64]:
        """The gradient that the parameters have, with respect to theta, where ``fit`` was False."""
        if not self.free:
            return np.array([])
        found = [getattr(module, f"raw_{name}") for module, name in self.free]
        # A length scale of what white noise multiplies has no part in the result, and so no gradient.
        parts = [torch.zeros_like(raw) if raw.grad is None else raw.grad for raw in found]
        return torch.cat([part.double().cpu().reshape(-1) for part in parts]).numpy()


def translate(kernel: sk.Kernel, columns: int, *, fit: bool) -> Translated:
    """A float64 GPyTorch kernel of points with so many columns.

    :param fit: whether bounds hold (a start beyond is moved inside). Otherwise values are taken as they are, and the
        stored numbers of free parameters are theta.
    :raises KernelError: a kernel that has no counterpart; the message names it.
    """
    check_kernel(kernel, columns)
    return _Translation(fit).of(kernel)


def evaluate(polynomial: Polynomial) -> Tensor:
    """Its value, in the graph of its parameters; 0 for none."""
    total = torch.zeros((), device="cpu")
    for numbers in polynomial:
        term = torch.ones((), device="cpu")
        for module, name in numbers:
            term = term * getattr(module, name).reshape(())
        total = total + term
    return total


def _value(number: Number) -> Tensor:
    """In scikit-learn's units."""
    module, name = number
    return getattr(module, f"raw_{name}_constraint").value(getattr(module, f"raw_{name}"))


def _times(first: Polynomial, second: Polynomial) -> Polynomial:
    return [(*one, *other) for one in first for other in second]


class _Translation:
    def __init__(self, fit: bool) -> None:
        self._fit = fit
        self._leaves: dict[type, Callable[[Any], Translated]] = {
            sk.ConstantKernel: self._constant,
            sk.WhiteKernel: self._white,
            sk.RBF: self._rbf,
            sk.Matern: self._matern,
            sk.RationalQuadratic: self._rational_quadratic,
            sk.ExpSineSquared: self._exp_sine_squared,
            sk.DotProduct: self._dot_product,
        }

    def of(self, kernel: Any) -> Translated:
        kind = type(kernel)
        if kind is sk.Sum:
            return _sum(self.of(kernel.k1), self.of(kernel.k2))
        if kind is sk.Product:
            if type(kernel.k1) is sk.ConstantKernel:
                return self._scaled(kernel.k1, self.of(kernel.k2), first=True)
            if type(kernel.k2) is sk.ConstantKernel:
                return self._scaled(kernel.k2, self.of(kernel.k1), first=False)
            return _product(self.of(kernel.k1), self.of(kernel.k2))
        if kind is sk.Exponentiation:
            return self._power(kernel)
        return self._leaves[kind](kernel)

    def _constant(self, kernel: sk.ConstantKernel) -> Translated:
        host = HostConstantKernel()
        number = (host, "constant")
        return Translated(host, [(number,)], free=self._placed(kernel, "constant_value", number))

    def _scaled(self, constant: sk.ConstantKernel, other: Translated, first: bool) -> Translated:
        host: Any = Level() if other.covariance is None else ScaleKernel(other.covariance)
        number = (host, "level" if other.covariance is None else "outputscale")
        own = self._placed(constant, "constant_value", number)
        return Translated(
            None if other.covariance is None else host,
            None if other.diagonal is None else _times([(number,)], other.diagonal),
            _times([(number,)], other.white),
            own + other.free if first else other.free + own,
        )

    def _white(self, kernel: sk.WhiteKernel) -> Translated:
        number = (Level(), "level")
        return Translated(None, [], [(number,)], self._placed(kernel, "noise_level", number))

    def _rbf(self, kernel: sk.RBF) -> Translated:
        return self._with_lengths(kernel, RBFKernel)

    def _matern(self, kernel: sk.Matern) -> Translated:
        if kernel.nu == math.inf:
            return self._with_lengths(kernel, RBFKernel)
        return self._with_lengths(kernel, lambda **options: MaternKernel(nu=kernel.nu, **options))

    def _with_lengths(self, kernel: Any, host_kernel: Callable[..., Kernel]) -> Translated:
        lengths = np.size(kernel.length_scale)
        host = host_kernel(ard_num_dims=lengths if lengths > 1 else None)
        return Translated(host, [()], free=self._placed(kernel, "length_scale", (host, "lengthscale")))

    def _rational_quadratic(self, kernel: sk.RationalQuadratic) -> Translated:
        host = RQKernel()
        free = self._placed(kernel, "alpha", (host, "alpha"))
        return Translated(host, [()], free=free + self._placed(kernel, "length_scale", (host, "lengthscale")))

    def _exp_sine_squared(self, kernel: sk.ExpSineSquared) -> Translated:
        host = PeriodicKernel()
        # GPyTorch's length is the square of this one.
        free = self._placed(kernel, "length_scale", (host, "lengthscale"), power=2)
        return Translated(host, [()], free=free + self._placed(kernel, "periodicity", (host, "period_length")))

    def _dot_product(self, kernel: sk.DotProduct) -> Translated:
        host = DotProductKernel()
        return Translated(host, None, free=self._placed(kernel, "sigma_0", (host, "offset"), power=2))

    def _power(self, kernel: sk.Exponentiation) -> Translated:
        found = base = self.of(kernel.kernel)
        for _ in range(int(kernel.exponent) - 1):
            found = _product(found, Translated(base.covariance, base.diagonal, base.white))
        return found

    def _placed(self, kernel: Any, name: str, number: Number, power: int = 1) -> list[Number]:
        """Value and bounds of scikit-learn's hyperparameter ``name`` in a module's; and that, if it is free."""
        module, own_name = number
        module.double()
        shape = getattr(module, f"raw_{own_name}").shape

        def shaped(values: Any) -> Tensor:
            numbers = np.broadcast_to(np.asarray(values, np.float64), shape.numel())
            return torch.tensor(numbers, device="cpu").reshape(shape)

        hyperparameter, value = getattr(kernel, f"hyperparameter_{name}"), shaped(getattr(kernel, name))
        bounds = torch.zeros_like(value), torch.full_like(value, math.inf)
        if self._fit and not hyperparameter.fixed:
            limits = np.atleast_2d(hyperparameter.bounds)
            bounds = shaped(limits[:, 0]), shaped(limits[:, 1])
        register(module, own_name, value, bounds, power, free=not hyperparameter.fixed)
        return [] if hyperparameter.fixed else [number]


def _sum(first: Translated, second: Translated) -> Translated:
    kernels = [each.covariance for each in (first, second) if each.covariance is not None]
    covariance = AdditiveKernel(*kernels) if len(kernels) == 2 else kernels[0] if kernels else None
    diagonal = None if first.diagonal is None or second.diagonal is None else first.diagonal + second.diagonal
    return Translated(covariance, diagonal, first.white + second.white, first.free + second.free)


def _product(first: Translated, second: Translated) -> Translated:
    """(d1 + w1) (d2 + w2) at two points that are the same, k1 k2 at others."""
    kernels = [each.covariance for each in (first, second) if each.covariance is not None]
    white = _times(first.white, second.white)
    for one, other in ((first, second), (second, first)):
        white += _times(one.white, other.diagonal or [])
    diagonal = None
    if first.diagonal is not None and second.diagonal is not None:
        diagonal = _times(first.diagonal, second.diagonal)
    covariance = DenseProductKernel(*kernels) if len(kernels) == 2 else None
    return Translated(covariance, diagonal, white, first.free + second.free)
