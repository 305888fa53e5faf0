"""Rigorous bounds from what a solve leaves behind. All follow from P <= A <= P + (K - Q), P >= D."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.residual_error import residual_error
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.system.answers import Interval
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.small_cores import to_host


@dataclass(frozen=True)
class SolutionEvidence:
    """What an approximate solution v of A v = b with residual r proves, per column, on the host in float64.

    ``residual_norm``: |r|; ``solution_norm``: |v|; ``quadratic``: b'v + r'v; ``energy``: r'P^-1 r from above.
    """

    residual_norm: Float64[np.ndarray, " m"]
    solution_norm: Float64[np.ndarray, " m"]
    quadratic: Float64[np.ndarray, " m"]
    energy: Float64[np.ndarray, " m"]

    @classmethod
    def gather(
        cls,
        system: LinearSystem,
        preconditioner: NystromPreconditioner,
        rhs: Float[Tensor, "n m"],
        solution: Float[Tensor, "n m"],
        residual: Float[Tensor, "n m"],
        correction: Float[Tensor, "n m"] | None = None,
    ) -> SolutionEvidence:
        """One transfer; O(n m), and O(n r m) without ``correction``, which is P^-1 r.

        :param residual: in the dtype of ``rhs``, or in float64 where a wide product gave it.
        """
        correction = preconditioner.solve(residual.to(rhs.dtype)) if correction is None else correction
        wide = residual.double()
        squares = wide.square()
        residual_square, whitened, solution_norm, quadratic, energy = to_host(
            squares.sum(0),
            (squares / system.noise.unsqueeze(-1)).sum(0),
            torch.linalg.vector_norm(solution, dim=0, dtype=torch.float64),
            ((rhs.double() + wide) * solution).sum(0),
            (wide * correction).sum(0),
        )
        bounded = energy_from_above(system, preconditioner, energy, whitened)
        return cls(np.sqrt(residual_square), solution_norm, quadratic, bounded)

    @classmethod
    def of_sums(
        cls, system: LinearSystem, preconditioner: NystromPreconditioner, parts: Float64[Tensor, "parts 5 m"]
    ) -> SolutionEvidence:
        """From :func:`~gp_rangeformer.system.device_cores.column_sums`, on the host."""
        residual, whitened, solution, quadratic, energy = parts.sum(0).numpy()
        bounded = energy_from_above(system, preconditioner, energy, whitened)
        return cls(np.sqrt(residual), np.sqrt(solution), quadratic, bounded)

    def with_leading(self, other: SolutionEvidence) -> SolutionEvidence:
        """Its first columns replaced by those of ``other``."""
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return SolutionEvidence(*(np.concatenate([new, old[len(new) :]]) for old, new in pairs))

    def bounds(self, margin: Float64[np.ndarray, " m"]) -> list[Interval]:
        """Rigorous intervals of b' A^-1 b. b' A^-1 b = 2 b'v - v'Av + r' A^-1 r, and 0 <= r' A^-1 r <= r' P^-1 r
        because A >= P. With Av = b - r the first two terms are b'v + r'v: no further pass over K.

        :param margin: what the value may be off by beside that: :func:`model_margin` for a residual in float32,
            :meth:`~gp_rangeformer.system.linear_system.LinearSystem.quadratic_margin` for one from a wide product.
        """
        ends = zip((self.quadratic - margin).tolist(), (self.quadratic + self.energy + margin).tolist(), strict=True)
        return [Interval(low, high) for low, high in ends]


# What the arithmetic of conditional variances adds to the rounding of K's entries: V is rounded to their precision, and
# entries of V V' are sums of few products in a register each.
CONDITIONING = 2
FEW_COLUMNS = 4  # whose residual is summed in float64: more would cost a pass over K each


Numbers = TypeVar("Numbers", Tensor, np.ndarray)


def energy_from_above(
    system: LinearSystem, preconditioner: NystromPreconditioner, energy: Numbers, whitened: Numbers
) -> Numbers:
    """r' P^-1 r of a computed ``energy``, at least r' A^-1 r. P^-1 subtracts nearly all of ``whitened``, r' D^-1 r,
    where P is large: its rounding is that of what it subtracts from."""
    rounding = 8 * torch.finfo(system.dtype).eps * whitened
    return (energy.clip(min=0) + rounding) * (1 + preconditioner.doubt(system))


def wide_residual(
    system: LinearSystem, rhs: Float[Tensor, "n m"], solution: Float[Tensor, "n m"]
) -> Float64[Tensor, "n m"]:
    """b - A v of a few columns, without rounding to speak of. One pass over K."""
    return rhs.double() - system.wide_matmul(solution.double())


def model_margin(system: LinearSystem, solution_norm: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """What the rounding dr of a residual moves b'v + r'v by: v'dr, which for signs that are random against v's is
    |v| |dr| / sqrt(n), with four standard deviations of room. For right-hand sides that nothing certain is said of."""
    return 4 * system.rounding_scale * solution_norm**2 / system.size**0.5


def inv_quad_bounds(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    rhs: Float[Tensor, "n m"],
    solution: Float[Tensor, "n m"],
    residual: Float[Tensor, "n m"],
) -> tuple[Float64[Tensor, " m"], list[Interval]]:
    """Value and interval of b' A^-1 b per column, for any approximate solution v with residual r = b - A v, computed by
    one product in the dtype of the system, or in float64 by a wide one. O(n r m).

    The value is b'v + r'v (its gradient at fixed v, -v' dA v, is that of the exact form to first order), on the host.
    """
    evidence = SolutionEvidence.gather(system, preconditioner, rhs, solution, residual)
    margin = system.quadratic_margin(evidence.solution_norm**2)
    if residual.dtype != torch.float64:
        margin = margin + model_margin(system, evidence.solution_norm)
    return torch.from_numpy(evidence.quadratic), evidence.bounds(margin)


def relative_residual(
    system: LinearSystem,
    rhs: Float[Tensor, "n m"],
    solution: Float[Tensor, "n m"],
    residual: Float[Tensor, "n m"],
    allowed: float = math.inf,
) -> Float64[Tensor, " m"]:
    """|b - A v| / |b| per column (0 where b is), widened by the rounding of ``residual``, or of K's entries where it is
    from a wide product of a float32 system; on the host. O(n m).

    :param allowed: beyond which that rounding itself is looked at, by a wide product of all columns.
    """
    norms = [torch.linalg.vector_norm(block, dim=0, dtype=torch.float64) for block in (residual, solution, rhs)]
    left, length, norm = to_host(*norms)
    narrow = residual.dtype == system.dtype
    error = left + (residual_error(system, rhs, solution, residual) if narrow else system.entry_scale * length)
    found = relative(error + system.skew_norms(solution, lambda: rhs - residual, error), norm)
    if narrow and system.dtype == torch.float32 and bool((found > allowed).any()) and (left <= allowed * norm).all():
        return relative_residual(system, rhs, solution, wide_residual(system, rhs, solution))
    return found


def relative(error: Float64[np.ndarray, " m"], norm: Float64[np.ndarray, " m"]) -> Float64[Tensor, " m"]:
    """error / norm, and 0 where the norm is."""
    return torch.from_numpy(np.divide(error, norm, out=np.zeros_like(error), where=norm != 0))


def logdet_bounds(
    system: LinearSystem, preconditioner: NystromPreconditioner, vecchia: VecchiaPreconditioner | None = None
) -> Interval:
    """Interval of log|A|: log|P| <= log|A| <= log|P| + sum_i log(1 + gap_i). O(n).

    log|A| - log|P| = log|I + P^-1/2 (K - Q) P^-1/2| <= log|I + D^-1/2 (K - Q) D^-1/2| because P >= D, and Hadamard's
    inequality bounds that by its diagonal. By concavity this is never above n log(1 + tr(K - Q) / (n s)). Hadamard's
    bound of A itself, sum_i log A_ii, is taken where it is smaller, and so is the one by conditional variances: of
    every point given the landmarks and some earlier points, in place of all earlier points. Widened by the rounding of
    log|A|.
    """
    base = preconditioner.logdet()
    rounding = system.logdet_margin()
    # log|A| >= log|P| - n log(1 + t) where P <= (1 + t) A.
    doubt = system.size * math.log1p(preconditioner.doubt(system))
    upper = min(base + preconditioner.facts.log_gap_sum, system.diagonal_facts.log_total_sum)
    if vecchia is not None:
        upper = min(upper, vecchia.logdet() + CONDITIONING * rounding)
    return Interval(base - rounding - doubt, max(upper, base) + rounding)
