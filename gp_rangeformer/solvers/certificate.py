"""Rigorous bounds from what a solve leaves behind. All follow from P <= A <= P + (K - Q), P >= D."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.solvers.base import Interval, LinearSystem
from gp_rangeformer.solvers.cholesky import logdet_rounding_per_point
from gp_rangeformer.solvers.nystrom import NystromPreconditioner


def inv_quad_bounds(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    rhs: Float[Tensor, "n m"],
    solution: Float[Tensor, "n m"],
    residual: Float[Tensor, "n m"],
    correction: Float[Tensor, "n m"] | None = None,
    rounding: Float[Tensor, " m"] | None = None,
) -> tuple[Float[Tensor, " m"], list[Interval]]:
    """Value and interval of b' A^-1 b per column, for any approximate solution v with residual r = b - A v.

    b' A^-1 b = 2 b'v - v'Av + r' A^-1 r, and 0 <= r' A^-1 r <= r' P^-1 r because A >= P. With Av = b - r the first two
    terms are b'v + r'v: no further pass over K. O(n r m). They are the value (its gradient at fixed v, -v' dA v, is
    that of the exact form to first order); the interval is widened by the rounding of r.

    :param correction: P^-1 r, if it is there already.
    :param rounding: norm of the rounding error of r per column, if it is more than that of one product.
    """
    lower = ((rhs + residual).double() * solution.double()).sum(0)
    correction = preconditioner.solve(residual) if correction is None else correction
    error = (residual.double() * correction.double()).sum(0).clamp_min(0)
    # P^-1 subtracts nearly all of the whitened residual where P is large: its rounding is that of r' D^-1 r.
    whitened = (residual.double().square() / system.noise.double().unsqueeze(-1)).sum(0)
    error = error + 8 * torch.finfo(system.dtype).eps * whitened
    # |v' dr| for a rounding error dr of random sign: |v| |dr| / sqrt(n), with four standard deviations of room.
    rounding = system.residual_rounding(solution) if rounding is None else rounding
    margin = (4 * rounding * torch.linalg.vector_norm(solution, dim=0) / system.size**0.5).double()
    ends = zip((lower - margin).tolist(), (lower + error + margin).tolist(), strict=True)
    return lower, [Interval(low, high) for low, high in ends]


def logdet_bounds(system: LinearSystem, preconditioner: NystromPreconditioner) -> Interval:
    """Interval of log|A|: log|P| <= log|A| <= log|P| + sum_i log(1 + gap_i). O(n).

    log|A| - log|P| = log|I + P^-1/2 (K - Q) P^-1/2| <= log|I + D^-1/2 (K - Q) D^-1/2| because P >= D, and Hadamard's
    inequality bounds that by its diagonal. By concavity this is never above n log(1 + tr(K - Q) / (n s)). Hadamard's
    bound of A itself, sum_i log A_ii, is taken where it is smaller. Widened by the rounding of log|A|.
    """
    base = preconditioner.logdet()
    hadamard = float((system.diagonal() + system.noise).double().log().sum())
    rounding = system.size * logdet_rounding_per_point(system)
    upper = min(base + float(preconditioner.gap.log1p().sum()), hadamard)
    return Interval(base - rounding, max(upper, base) + rounding)
