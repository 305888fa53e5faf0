"""From a first guess to a certified solution: block CG, and a residual whose rounding is counted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.preconditioner.certificate import SolutionEvidence, model_margin, relative, wide_residual
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.solvers.block_cg import block_cg
from gp_rangeformer.system.answers import Interval, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.small_cores import to_host

# Updates through which a residual is carried instead of being recomputed from the solution, which costs a pass. Each
# rounds as a product does, and rounds the solution: counted as twice the rounding of a product. Measured, all of four
# together stay below twice (tests/preconditioner/test_certificate.py).
_CARRIED, ROUNDING_OF_AN_UPDATE = 4, 2
# Refinements after a residual that, recomputed, missed its target: float32 recurrences drift by a few per cent.
_RESTARTS = 3
_SHRINK = 0.95  # of the target that block CG is given: what the rounding of its residual adds


def refine(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    rhs: Float[Tensor, "n m"],
    initial: Tensor | tuple[Tensor, Tensor] | None,
    *,
    tolerance: float,
    stop_energy: NDArray[np.float64] | float = math.inf,
    max_passes: int,
) -> Solution:
    """Refine ``initial`` until every residual is certified; what fails comes back as zeros with the reason.

    :param initial: a first X, or X with its residual, or None for zero.
    :param tolerance: of |r| / |b| per column.
    :param stop_energy: r' P^-1 r to reach besides ``tolerance``, per column.
    :param max_passes: of block CG.
    Cost: a pass for the residual of X, one an iteration, and one more where the residual was not carried.
    """
    fresh = not isinstance(initial, tuple)  # the residual was computed from this very solution
    start = system.passes
    if initial is None:
        solution, residual = torch.zeros_like(rhs), rhs
    else:
        solution, residual = initial if isinstance(initial, tuple) else (initial, rhs - system.matmul(initial))
    norm, left = to_host(torch.linalg.vector_norm(rhs, dim=0), torch.linalg.vector_norm(residual, dim=0))
    if not np.isfinite(norm).all():
        return failed(rhs, Reason.NOT_FINITE, 0, system.passes - start)
    worse = ~(left < norm)
    if initial is not None and worse.any():
        # A column that the memory makes worse than zero, or not a number, starts from zero.
        start_over = torch.from_numpy(worse).to(rhs.device)
        solution, residual = torch.where(start_over, 0, solution), torch.where(start_over, rhs, residual)
        left = np.where(worse, norm, left)
    asked = _Asked(
        system,
        preconditioner,
        rhs,
        norm,
        np.maximum(tolerance * norm, torch.finfo(rhs.dtype).tiny),
        np.broadcast_to(np.asarray(stop_energy, dtype=np.float64), norm.shape),
        tolerance,
    )
    found: Solution | Reason | None = None
    if fresh and (left <= _SHRINK * asked.residual).all():
        # Nothing may be left to do, as in many steps of a training.
        found = asked.certify(solution, residual, preconditioner.solve(residual), 1, with_energy=True)
    iterations, shrink = 0, _SHRINK
    for _ in range(_RESTARTS):
        if found is not None:
            break
        result = block_cg(
            system,
            preconditioner,
            solution,
            residual,
            stop_norm=torch.from_numpy(shrink * asked.residual),
            stop_energy=torch.from_numpy(shrink * asked.energy),
            max_passes=max_passes - iterations,
        )
        iterations += result.iterations
        solution, residual, correction = result.value, result.residual, result.correction
        if result.reason is not Reason.CONVERGED:
            return failed(rhs, result.reason, iterations, system.passes - start)
        assert correction is not None
        if fresh and result.iterations <= _CARRIED:
            roundings = 1 + ROUNDING_OF_AN_UPDATE * result.iterations
            found = asked.certify(solution, residual, correction, roundings)
        if found is None:
            residual, fresh = rhs - system.matmul(solution), True
            found = asked.certify(solution, residual, preconditioner.solve(residual), 1)
        shrink *= 0.5
    passes = system.passes - start
    if not isinstance(found, Solution):
        return failed(rhs, found or Reason.ROUNDING, iterations, passes)
    return replace(found, iterations=iterations, passes=passes)


def failed(rhs: Float[Tensor, "n m"], reason: Reason, iterations: int, passes: int) -> Solution:
    """Zeros with no evidence, and the reason."""
    m = rhs.shape[1]
    nothing, unbounded = torch.full((m,), math.inf), [Interval(-math.inf, math.inf)] * m
    none = torch.zeros(m, dtype=torch.float64)
    return Solution(torch.zeros_like(rhs), nothing, none, unbounded, iterations, passes, reason)


@dataclass(frozen=True)
class _Asked:
    """What a solution has to reach, per column: ``residual`` for |r| and ``energy`` for r' P^-1 r; ``norm``: |b|.

    Finite energies are those of right-hand sides that enter the likelihood, and come first.
    """

    system: LinearSystem
    preconditioner: NystromPreconditioner
    rhs: Tensor
    norm: Float64[np.ndarray, " m"]
    residual: Float64[np.ndarray, " m"]
    energy: Float64[np.ndarray, " m"]
    tolerance: float

    def certify(
        self, solution: Tensor, residual: Tensor, correction: Tensor, roundings: int, *, with_energy: bool = False
    ) -> Solution | Reason | None:
        """The certified solution; None where the residual is too large, the reason where rounding alone is.

        What is said of the columns that enter the likelihood is certain: in float32 their residual is computed again,
        by a wide product of its own, and no rounding is left to be modelled.

        :param correction: P^-1 residual.
        :param roundings: of a product, that ``residual`` has gone through.
        :param with_energy: ask for the energies too, which block CG has seen otherwise.
        """
        system = self.system
        evidence = SolutionEvidence.gather(system, self.preconditioner, self.rhs, solution, residual, correction)
        # Not the other way round: NaN is too large.
        if not (evidence.residual_norm <= self.residual).all():
            return None
        sharp = self._sharp_columns()
        if sharp:
            rhs, own = self.rhs[:, :sharp], solution[:, :sharp]
            exact = wide_residual(system, rhs, own)
            evidence = evidence.with_leading(SolutionEvidence.gather(system, self.preconditioner, rhs, own, exact))
        rounding = roundings * system.rounding_scale * evidence.solution_norm
        rounding[:sharp] = 0
        if roundings == 1 and (rounding > self.residual).any():
            return Reason.ROUNDING
        error = evidence.residual_norm + rounding
        small = (error <= self.residual).all() and (not with_energy or (evidence.energy <= self.energy).all())
        if not small:
            return None
        model = model_margin(system, evidence.solution_norm)
        model[:sharp] = 0
        if not self._tight(evidence.bounds(model)):
            return Reason.ROUNDING
        bounds = evidence.bounds(model + system.quadratic_margin(evidence.solution_norm**2))
        quadratic = torch.from_numpy(evidence.quadratic)
        error[:sharp] += system.entry_scale * evidence.solution_norm[:sharp]
        return Solution(solution, relative(error, self.norm), quadratic, bounds, 0, 0, Reason.CONVERGED, correction)

    def _sharp_columns(self) -> int:
        """How many columns, from the first, get a wide product: none in float64, whose ordinary ones are as good."""
        return 0 if self.system.dtype == torch.float64 else int((self.energy < math.inf).sum())

    def _tight(self, bounds: list[Interval]) -> bool:
        """Whether the quadratic forms that enter the likelihood (finite energy) are known to half the tolerance, as far
        as the solution decides."""
        likely = [bound for bound, energy in zip(bounds, self.energy.tolist(), strict=True) if energy < math.inf]
        return all(bound.width <= self.tolerance * max(self.system.size, bound.upper) for bound in likely)
