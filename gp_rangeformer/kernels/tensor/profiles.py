"""Stationary kernels as functions of the squared scaled distance q, on buffers that they overwrite.

Three buffers of one tile's shape are at hand: the first holds q when a method is called, the others anything. Each
elementwise pass over a tile in cache costs 0.1 to 0.2 ns an entry, which is why the formulas are written as few passes
as they need (float32, one thread). ``slope`` is dk/dq up to the factor ``slope_factor``, which is applied to sums.

Two values of q cost 10 to 300 times a pass in the vector mathematics library and must not occur: exponentials that
underflow (12 to 60 ns an entry) and square roots of zero (3 ns). The caller clamps q to ``SMALLEST`` and to
``largest``, where the kernel is about exp(-60) = 9e-27 in float32 and exp(-300) in float64, nothing beside the
diagonal's one: a sum over 10^8 pairs a million length-scales apart must still find it negligible times r^2.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.expression import Kind

# |z_i - z_j|^2 is at least this: small enough that k is 1 to the last bit, and a normal number.
SMALLEST = 1e-36
EQUAL = 2 * SMALLEST  # and so are points where it is not more
_EXPONENT = {torch.float32: 60.0, torch.float64: 300.0}

Tile = Float[Tensor, "rows columns"]


class Buffers(NamedTuple):
    """Three contiguous tiles of the same shape."""

    first: Tile
    second: Tile
    third: Tile


class Opened(NamedTuple):
    """k(q), dk/dq / slope_factor, a buffer that may be overwritten with a multiple of the latter, and dk/dalpha."""

    value: Tile
    slope: Tile
    target: Tile
    shape_slope: Tile | None = None


@runtime_checkable
class Profile(Protocol):
    """One stationary kernel."""

    slope_factor: float

    def largest(self, exponent: float, finite: float) -> float:
        """The q beyond which k is about exp(-exponent) or less, or what it is computed from exceeds ``finite``."""
        ...

    def value(self, buffers: Buffers, out: Tile) -> None:
        """out = k(q). ``out`` may be strided; it is none of the buffers."""
        ...

    def open(self, buffers: Buffers) -> Opened:
        """k(q) and its derivatives, in the buffers."""
        ...


class RBF:
    """exp(-q / 2); the slope is the value."""

    slope_factor = -0.5

    def largest(self, exponent: float, finite: float) -> float:
        return 2 * exponent

    def value(self, buffers: Buffers, out: Tile) -> None:
        torch.exp(buffers.first.mul_(-0.5), out=out)

    def open(self, buffers: Buffers) -> Opened:
        self.value(buffers, buffers.second)
        return Opened(buffers.second, buffers.second, buffers.first)


class Matern12:
    """exp(-r); dk/dq = -exp(-r) / (2 r).

    The slope is infinite at r = 0, where it meets a difference of coordinates that is zero: points that are equal have
    none, or sums over others would round it into the gradient. Below ``unresolved``, what rounding leaves of r at
    points that nearly coincide, 1 / r is held: such pairs add at most their own weight times ``unresolved`` to the
    gradient of a length-scale.
    """

    slope_factor = -0.5

    def __init__(self, unresolved: float) -> None:
        self._unresolved = unresolved

    def largest(self, exponent: float, finite: float) -> float:
        return exponent**2

    def value(self, buffers: Buffers, out: Tile) -> None:
        torch.exp(buffers.first.sqrt_().neg_(), out=out)

    def open(self, buffers: Buffers) -> Opened:
        r, value, _ = buffers
        apart = r > EQUAL
        torch.neg(r.sqrt_(), out=value).exp_()
        slope = torch.div(value, r.clamp_min_(self._unresolved), out=r).mul_(apart)
        return Opened(value, slope, slope)


class Matern32:
    """(1 + a) exp(-a), a = sqrt(3 q); dk/dq = -3/2 exp(-a)."""

    slope_factor = -1.5

    def largest(self, exponent: float, finite: float) -> float:
        return exponent**2 / 3

    def value(self, buffers: Buffers, out: Tile) -> None:
        r, exponential, _ = buffers
        torch.mul(r.sqrt_(), -math.sqrt(3), out=exponential).exp_()
        torch.addcmul(exponential, r, exponential, value=math.sqrt(3), out=out)

    def open(self, buffers: Buffers) -> Opened:
        r, exponential, _ = buffers
        self.value(buffers, r)
        return Opened(r, exponential, exponential)


class Matern52:
    """(1 + a + a^2 / 3) exp(-a), a = sqrt(5 q); dk/dq = -5/6 (1 + a) exp(-a)."""

    slope_factor = -5 / 6

    def largest(self, exponent: float, finite: float) -> float:
        return exponent**2 / 5

    def value(self, buffers: Buffers, out: Tile) -> None:
        a, slope, product = buffers
        torch.neg(a.sqrt_().mul_(math.sqrt(5)), out=slope).exp_()
        torch.mul(a, slope, out=product)
        slope.add_(product)
        torch.addcmul(slope, a, product, value=1 / 3, out=out)

    def open(self, buffers: Buffers) -> Opened:
        a, slope, _ = buffers
        self.value(buffers, a)
        return Opened(a, slope, slope)


class RationalQuadratic:
    """b^-alpha, b = 1 + u, u = q / (2 alpha); dk/dq = -b^-alpha / (2 b), dk/dalpha = b^-alpha (u / b - log b)."""

    slope_factor = -0.5

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def largest(self, exponent: float, finite: float) -> float:
        # Double precision, and with it ``finite``, ends at exp(709): there is no such q for a heavier tail.
        return 2 * self._alpha * min(math.expm1(min(exponent / self._alpha, 709.0)), finite)

    def value(self, buffers: Buffers, out: Tile) -> None:
        u, log_b, _ = buffers
        torch.log1p(u.mul_(0.5 / self._alpha), out=log_b)
        torch.exp(log_b.mul_(-self._alpha), out=out)

    def open(self, buffers: Buffers) -> Opened:
        u, value, shape_slope = buffers
        torch.log1p(u.mul_(0.5 / self._alpha), out=shape_slope)
        torch.mul(shape_slope, -self._alpha, out=value).exp_()
        # Not 1 - 1 / b: rounded by eps beside one, that alpha multiplies, it hides u / b - log b = -u^2 / 2 of small u.
        b = u + 1
        shape_slope.neg_().addcdiv_(u, b).mul_(value)
        slope = torch.div(value, b, out=u)
        return Opened(value, slope, slope, shape_slope)


def largest_squared_distance(profile: Profile, dtype: torch.dtype) -> float:
    """Where the caller clamps q from above, so that it and q / (2 alpha) stay numbers of ``dtype``."""
    finite = torch.finfo(dtype).max / 4
    return min(profile.largest(_EXPONENT[dtype], finite), finite)


def unresolved_distance(squares: Float[Tensor, "n _"], dtype: torch.dtype) -> float:
    """What rounding in ``dtype`` leaves of the distance of coincident points whose squared norms are ``squares``."""
    return max(torch.finfo(dtype).eps * float(squares.mean()), SMALLEST) ** 0.5


def profile(kind: Kind, alpha: float | None, unresolved: float) -> Profile:
    """The profile of ``kind``: ``alpha`` of a rational quadratic, the distance below which rounding leaves points
    ``unresolved``. The periodic kernel is the RBF of points on circles."""
    match kind:
        case "rbf" | "periodic":
            return RBF()
        case "matern12":
            return Matern12(unresolved)
        case "matern32":
            return Matern32()
        case "matern52":
            return Matern52()
        case "rq":
            assert alpha is not None
            return RationalQuadratic(alpha)
