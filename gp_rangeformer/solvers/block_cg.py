"""Block preconditioned conjugate gradients: all right-hand sides share their search directions.

Dubrulle's BCGrQ (2001) in the inner product of P^-1: the residual block is kept as R = S Phi with S' P^-1 S = I, so the
small cores stay well conditioned where the plain recurrence of O'Leary (1980) loses its directions to float32 rounding
(on pol at n = 4000 the plain one stagnated where this one converges). Directions that became dependent are dropped.
One iteration is one pass over K.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.protocol import Preconditioner
from gp_rangeformer.solvers.block_cores import DeviceCores, HostCores, cores_of
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason

# Give up when this many iterations have not halved the largest residual: rounding has taken over. Shorter plateaus are
# the usual start of a hard system.
_PATIENCE = 50
# Of a K that is positive semi-definite by what it is: how far below its end the spectrum may seem to reach. Directions
# from columns that are nearly dependent are rounded by eps over what is left of them, some per cent in float32; that
# costs iterations, and no certificate rests on it. Of any other K what is seen there is the only evidence.
_ROUNDED_DIRECTIONS = 2.0


@dataclass(frozen=True)
class BlockCGResult:
    """X, the residual R that its updates leave (each with the rounding of a product), iterations and why it stopped.

    ``correction``: P^-1 R, which the recurrence knows, with the same rounding; None unless converged.
    """

    value: Float[Tensor, "n m"]
    residual: Float[Tensor, "n m"]
    iterations: int
    reason: Reason
    correction: Float[Tensor, "n m"] | None = None


class BlockCG:
    """The recurrence, from ``residual = rhs - A @ initial``. An iteration decides nothing: :func:`block_cg` looks
    between them at what ``cores`` know, a device goes through several unseen."""

    def __init__(
        self,
        system: LinearSystem,
        preconditioner: Preconditioner,
        initial: Float[Tensor, "n m"],
        residual: Float[Tensor, "n m"],
        cores: HostCores | DeviceCores,
    ) -> None:
        self._system, self._preconditioner, self.cores = system, preconditioner, cores
        self.solution, self.residual = initial.clone(), residual.clone()
        self._orthonormalise(self.cores.scaled(residual))
        self._directions = self._preconditioned

    def iterate(self) -> None:
        """One iteration, unless it fails. One pass over K."""
        image = self._system.matmul(self._directions)
        step = self.cores.conjugate(self._directions, image)
        if step is None:
            return
        sizes, inverse = step
        self.solution.addmm_(self._directions, sizes)
        self.residual.addmm_(image, sizes, alpha=-1)
        rotation = self._orthonormalise(torch.addmm(self._shared, image, inverse, alpha=-1))
        self._directions = torch.addmm(self._preconditioned, self._directions, rotation)

    def correction(self) -> Float[Tensor, "n m"]:
        """P^-1 R."""
        return self._preconditioned @ self.cores.correction_coefficients().to(self._preconditioned)

    def _orthonormalise(self, block: Float[Tensor, "n m"]) -> Float[Tensor, "m k"]:
        """S and P^-1 S of the block W = S Phi; Phi'."""
        preconditioned = self._preconditioner.solve(block)
        transform, rotation = self.cores.orthonormalise(block, preconditioned)
        self._shared, self._preconditioned = block @ transform, preconditioned @ transform
        return rotation


def largest_inverse(system: LinearSystem, preconditioner: Preconditioner) -> float:
    """Of a Rayleigh quotient of the inverse curvature: more disproves that K is positive semi-definite."""
    least = preconditioner.least_ritz_value(system)
    largest = 1 / least if least > 0 else math.inf
    return max(largest, _ROUNDED_DIRECTIONS) if system.trusted else largest


def block_cg(
    system: LinearSystem,
    preconditioner: Preconditioner,
    initial: Float[Tensor, "n m"],
    residual: Float[Tensor, "n m"],
    *,
    stop_norm: Float[Tensor, " m"],
    stop_energy: Float[Tensor, " m"],
    max_passes: int,
    patience: int | None = None,
) -> BlockCGResult:
    """Reduce ``residual = rhs - A @ initial`` until every column is small enough.

    :param stop_norm: |r| to reach, per column.
    :param stop_energy: r' P^-1 r to reach, per column (infinity where it does not matter).
    :param max_passes: the most passes over K to spend.
    :param patience: iterations after which it gives up unless half as many more would do, at the rate so far.
    Cost per iteration: one pass with at most m columns, O(n r m) for P, O(n m^2); no n x n memory.
    """
    cores = cores_of(residual, stop_norm, stop_energy, functools.partial(largest_inverse, system, preconditioner))
    recurrence = BlockCG(system, preconditioner, initial, residual, cores)
    best, since_best, first = float("inf"), 0, None
    while True:
        iterations, worst, reason = cores.look()
        first = worst if first is None else first
        correction = None
        if reason is None and worst <= 1:
            reason, correction = Reason.CONVERGED, recurrence.correction()
        elif reason is None and not worst < float("inf"):
            reason = Reason.NOT_FINITE
        elif reason is None and (iterations >= max_passes or _too_slow(iterations, patience, first, worst)):
            reason = Reason.MAX_PASSES
        if worst < 0.5 * best:
            best, since_best = worst, 0
        else:
            since_best += 1
        if reason is None and since_best >= _PATIENCE:
            reason = Reason.STAGNATION
        if reason is Reason.NOT_PSD and system.positive is not None and system.trusted:
            reason = Reason.STAGNATION  # rounding of nearly dependent columns: such a kernel has no negative direction
        if reason is not None:
            return BlockCGResult(recurrence.solution, recurrence.residual, iterations, reason, correction)
        recurrence.iterate()


def _too_slow(iterations: int, patience: int | None, first: float, worst: float) -> bool:
    """Whether more than one and a half times ``patience`` would be needed from ``first`` to 1, with ``worst`` left."""
    if patience is None or iterations < patience:
        return False
    return worst >= first or iterations * math.log(first) > 1.5 * patience * math.log(first / worst)
