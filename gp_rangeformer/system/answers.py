"""What a solver answers, with its evidence, and the life cycle of one.

``solver.prepare(system, memory) -> prepared`` does the work that all later questions share (a factorisation, a
preconditioner). ``prepared.solve(rhs)``, ``prepared.logdet()`` and ``prepared.evaluate(rhs)`` answer them, and of the
certified and the exact solver ``prepared.inv_root()``. Results carry their own evidence: residuals, bounds, passes over
K, and a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason


@dataclass(frozen=True)
class Interval:
    """A closed interval of real numbers, ``lower <= upper``, in the units of what it brackets (nats here)."""

    lower: float
    upper: float

    @property
    def width(self) -> float:
        return self.upper - self.lower

    def contains(self, value: float) -> bool:
        return self.lower <= value <= self.upper

    def clip(self, value: float) -> float:
        return min(max(value, self.lower), self.upper)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lower + other.lower, self.upper + other.upper)

    def scaled(self, factor: float) -> Interval:
        """The interval times ``factor``; a negative factor swaps the ends."""
        ends = (self.lower * factor, self.upper * factor)
        return Interval(min(ends), max(ends))

    def widened(self, margin: float) -> Interval:
        """By ``margin`` at either end."""
        return Interval(self.lower - margin, self.upper + margin)

    def shifted(self, offset: float) -> Interval:
        return Interval(self.lower + offset, self.upper + offset)

    def within(self, certain: Interval) -> Interval:
        """The part that lies in ``certain``, which contains the number; that one where they have nothing in common."""
        lower, upper = max(self.lower, certain.lower), min(self.upper, certain.upper)
        return Interval(lower, upper) if lower <= upper else certain

    def outward(self, places: int) -> tuple[str, str]:
        """Both ends with so many decimals, rounded away from what lies between."""
        lower, upper = round(self.lower, places), round(self.upper, places)
        step = 10.0**-places
        lower, upper = lower - step * (lower > self.lower), upper + step * (upper < self.upper)
        return f"{lower:.{places}f}", f"{upper:.{places}f}"


@dataclass(frozen=True)
class Solution:
    """Approximate solution of A X = B with its evidence.

    ``residual``: relative norms |b - A x| / |b| per column, recomputed from X with one pass over K, or carried from
    such a pass through a few updates of X; widened by the rounding estimate of either. ``quadratic``: b'x + r'x, which
    is b' A^-1 b from below. Both are on the host. ``inv_quad``: rigorous interval of b' A^-1 b per column, in nats when
    b = y (twice the quadratic term of the likelihood).
    """

    value: Float[Tensor, "n m"]
    residual: Float[Tensor, " m"]
    quadratic: Float64[Tensor, " m"]
    inv_quad: list[Interval]
    iterations: int
    passes: int
    reason: Reason
    correction: Float[Tensor, "n m"] | None = None  # P^-1 (b - A x): what a further step would add
    mean_error: float | None = None  # of means k*' x, over the standard deviation of the noise, where it was asked for

    @property
    def converged(self) -> bool:
        return self.reason is Reason.CONVERGED

    def joined(self, other: Solution) -> Solution:
        """The columns of both, which have converged."""
        corrections = self.correction, other.correction
        known = [correction for correction in corrections if correction is not None]
        return replace(
            self,
            value=torch.cat([self.value, other.value], dim=1),
            residual=torch.cat([self.residual, other.residual]),
            quadratic=torch.cat([self.quadratic, other.quadratic]),
            inv_quad=self.inv_quad + other.inv_quad,
            iterations=self.iterations + other.iterations,
            passes=self.passes + other.passes,
            correction=torch.cat(known, dim=1) if len(known) == len(corrections) else None,
        )

    def leading(self, count: int) -> Solution:
        """The first ``count`` columns with their evidence."""
        return replace(
            self,
            value=self.value[:, :count],
            residual=self.residual[:count],
            quadratic=self.quadratic[:count],
            inv_quad=self.inv_quad[:count],
            correction=None,
        )


LogDetMethod = Literal["exact", "lanczos", "learned", "quadrature"]


@dataclass(frozen=True)
class LogDet:
    """log|A| with two intervals that are never mixed up.

    ``rigorous`` contains log|A| always (up to the stated rounding margin); it is wide where low rank saturates.
    ``statistical`` contains it with probability ``level``: over the choice of probes for "lanczos", over systems like
    those of training for "learned"; None where nothing is random. ``note``: why another method than the one that was
    asked for answered, or None. ``samples``: of "lanczos", what each probe says: those of
    two systems with the same probes tell how well their difference is known.
    """

    value: float
    rigorous: Interval
    statistical: Interval | None = None
    level: float | None = None
    passes: int = 0
    method: LogDetMethod = "exact"
    note: str | None = None
    samples: tuple[float, ...] = ()


@dataclass
class InverseRoot:
    """S with S S' approximately A^-1, n x k. ``error`` estimates how much of the predictive variance it misses,
    relative to variance plus noise (0 for an exact root); S S' <= A^-1, so variances can only come out too large."""

    value: Float[Tensor, "n k"]
    error: float
    passes: int
    reason: Reason


@runtime_checkable
class Weight(Protocol):
    """The gradient of loss = sum_j g_inv_quad[j] rhs_j' A^-1 rhs_j + g_logdet * log|A| with respect to K, before the
    two g are known: d(loss) = sum(W * dK). A dataclass of tensors and None: autograd saves its fields."""

    @property
    def solutions(self) -> Float[Tensor, "n m"]:
        """A^-1 rhs."""
        ...

    def thin(self, g_inv_quad: Float[Tensor, " m"], g_logdet: Float[Tensor, ""]) -> ThinWeight | None:
        """W in factors, where it has some."""
        ...

    def dense(self, g_inv_quad: Float[Tensor, " m"], g_logdet: Float[Tensor, ""]) -> Float[Tensor, "n n"]:
        """W as a symmetric matrix."""
        ...


@dataclass
class Evaluation:
    """Everything one training step asks of A: the quadratic forms, log|A| and the gradient of both.

    ``fallback_reason``: why the solver that was asked handed over to the exact path, or None.
    """

    solution: Solution
    logdet: LogDet | None
    weight: Weight
    inv_quad: Float[Tensor, " m"]
    residual: float  # largest certified relative residual, probe columns included
    fallback_reason: Reason | None = None

    def outputs(self, like: Tensor) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
        """Quadratic forms and log|A| (0 where it was not asked for), as new tensors of the dtype of ``like``."""
        logdet = like.new_zeros(()) if self.logdet is None else like.new_full((), self.logdet.value)
        return self.inv_quad.clone(), logdet


@runtime_checkable
class Prepared(Protocol):
    """A solver that has seen its system."""

    @property
    def system(self) -> LinearSystem: ...

    @property
    def exact(self) -> Factorised | None:
        """The factorisation that had to answer, or None."""
        ...

    def solve(self, rhs: Float[Tensor, "n m"]) -> Solution: ...

    def logdet(self) -> LogDet: ...

    def evaluate(self, rhs: Float[Tensor, "n m"], with_logdet: bool = True) -> Evaluation: ...


@runtime_checkable
class Factorised(Prepared, Protocol):
    """A system with its Cholesky factor, which may be of a higher precision, or that of A + ``jitter`` I."""

    @property
    def factor(self) -> Float[Tensor, "n n"]: ...

    @property
    def jitter(self) -> float: ...

    def notes(self) -> list[str]:
        """What a reader of the report should know of the factorisation."""
        ...
