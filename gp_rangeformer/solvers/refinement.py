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
from gp_rangeformer.preconditioner.protocol import Preconditioner
from gp_rangeformer.preconditioner.residual_error import residual_error
from gp_rangeformer.solvers.block_cg import block_cg
from gp_rangeformer.system.answers import Interval, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.small_cores import to_host

# Updates through which a residual is carried instead of being recomputed from the solution, which costs a pass. Each
# rounds as a product does, and rounds the solution: counted as twice the rounding of a product. Measured, all of four
# together stay below twice (tests/preconditioner/test_certificate.py).
CARRIED, ROUNDING_OF_AN_UPDATE = 4, 2
# Refinements after a residual that, recomputed, missed its target: float32 recurrences drift by a few per cent.
_RESTARTS = 3
# Of the energies in the norm of the P that is iterated with: a residual in float32 holds rounding that W enlarges, and
# nothing certain is said of them.
_OWN_SLACK = 25.0
SHRINK = 0.95  # of the target that block CG is given: what the rounding of its residual adds


def refine(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    rhs: Float[Tensor, "n m"],
    initial: Tensor | tuple[Tensor, Tensor] | None,
    *,
    tolerance: float,
    stop_energy: NDArray[np.float64] | float = math.inf,
    max_passes: int,
    iterated: Preconditioner | None = None,
    own_energy: NDArray[np.float64] | None = None,
) -> Solution:
    """Refine ``initial`` until every residual is certified; what fails comes back as zeros with the reason.

    :param initial: a first X, or X with its residual, or None for zero.
    :param tolerance: of |r| / |b| per column.
    :param stop_energy: r' P^-1 r to reach besides ``tolerance``, per column.
    :param max_passes: of block CG.
    :param iterated: what block CG is preconditioned with, where it is not ``preconditioner``, which certifies.
    :param own_energy: r' P^-1 r to reach besides, per column, for the P of ``iterated``.
    Cost: a pass for the residual of X, one an iteration, and one more where the residual was not carried.
    """
    start = system.passes
    (norm,) = to_host(torch.linalg.vector_norm(rhs, dim=0, dtype=torch.float64))
    if not np.isfinite(norm).all():
        return failed(rhs, Reason.NOT_FINITE, 0, system.passes - start)
    asked = Asked.of(system, preconditioner, rhs, norm, tolerance, stop_energy, own_energy)
    own = iterated or preconditioner
    fresh = not isinstance(initial, tuple)  # the residual was computed from this very solution
    # Where rounding of float32 products alone may exceed what is allowed, residuals are float64.
    narrow, wide = system.dtype != torch.float64, False
    if initial is None:
        solution, residual = torch.zeros_like(rhs), rhs
    elif isinstance(initial, tuple):
        solution, residual = initial
    else:
        solution, wide = initial, asked.beyond_rounding(initial)
        residual = asked.residual_of(solution, wide=wide)
    if initial is not None:
        solution, residual = _no_worse_than_zero(rhs, norm, solution, residual)
    stop_norm, stop_energy = asked.stopping(other_energies=iterated is not None)
    found: Solution | Reason | None = None
    (left,) = to_host(torch.linalg.vector_norm(residual, dim=0))
    if fresh and (left <= SHRINK * asked.residual).all():
        # Nothing may be left to do, as in many steps of a training.
        correction = own.solve(residual.to(rhs.dtype))
        found = asked.certify(solution, residual, correction, 0 if wide else 1, with_energy=True, slack=1.0)
    iterations, restarts = 0, 0
    while not isinstance(found, Solution):
        if found is None:
            if restarts == _RESTARTS:
                break
            shrink = SHRINK * 0.5**restarts
            restarts += 1
            result = block_cg(
                system,
                own,
                torch.zeros_like(rhs) if wide else solution,
                residual.to(rhs.dtype),
                stop_norm=torch.from_numpy(shrink * stop_norm),
                stop_energy=torch.from_numpy(shrink * stop_energy),
                max_passes=max_passes - iterations,
            )
            iterations += result.iterations
            if result.reason is not Reason.CONVERGED:
                return failed(rhs, result.reason, iterations, system.passes - start)
            assert result.correction is not None
            solution, residual = (solution + result.value if wide else result.value), result.residual
            if fresh and not wide and result.iterations <= CARRIED:
                roundings = 1 + ROUNDING_OF_AN_UPDATE * result.iterations
                other = iterated is not None
                found = asked.certify(solution, residual, result.correction, roundings, with_energy=other)
                if isinstance(found, Solution):
                    break
        elif wide or not narrow:
            break
        if narrow and not wide:
            wide = found is not None or restarts == _RESTARTS - 1 or asked.beyond_rounding(solution)
        residual, fresh = asked.residual_of(solution, wide=wide), True
        correction = own.solve(residual.to(rhs.dtype))
        found = asked.certify(
            solution, residual, correction, 0 if wide else 1, with_energy=wide or iterated is not None
        )
    passes = system.passes - start
    if not isinstance(found, Solution):
        return failed(rhs, found or Reason.ROUNDING, iterations, passes)
    return replace(found, iterations=iterations, passes=passes)


def _no_worse_than_zero(
    rhs: Tensor, norm: Float64[np.ndarray, " m"], solution: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """A column that the memory makes worse than zero, or not a number, starts from zero."""
    (left,) = to_host(torch.linalg.vector_norm(residual, dim=0))
    worse = ~(left < norm)
    if not worse.any():
        return solution, residual
    start_over = torch.from_numpy(worse).to(rhs.device)
    return torch.where(start_over, 0, solution), torch.where(start_over, rhs.to(residual.dtype), residual)


def failed(rhs: Float[Tensor, "n m"], reason: Reason, iterations: int, passes: int) -> Solution:
    """Zeros with no evidence, and the reason."""
    m = rhs.shape[1]
    nothing, unbounded = torch.full((m,), math.inf, device="cpu"), [Interval(-math.inf, math.inf)] * m
    none = torch.zeros(m, dtype=torch.float64, device="cpu")
    return Solution(torch.zeros_like(rhs), nothing, none, unbounded, iterations, passes, reason)


def sharp_columns(system: LinearSystem, energy: Float64[np.ndarray, " m"]) -> int:
    """How many columns, from the first, of which ``energy`` is asked get a wide product: none in float64, whose
    ordinary ones are as good."""
    return 0 if system.dtype == torch.float64 else int((energy < math.inf).sum())


@dataclass(frozen=True)
class Asked:
    """What a solution has to reach, per column: ``residual`` for |r| and ``energy`` for r' P^-1 r, ``own_energy`` for
    that of another P; ``norm``: |b|.

    Finite energies are those of right-hand sides that enter the likelihood, and come first.
    """

    system: LinearSystem
    preconditioner: NystromPreconditioner
    rhs: Tensor
    norm: Float64[np.ndarray, " m"]
    residual: Float64[np.ndarray, " m"]
    energy: Float64[np.ndarray, " m"]
    tolerance: float
    own_energy: Float64[np.ndarray, " m"] | None

    @classmethod
    def of(
        cls,
        system: LinearSystem,
        preconditioner: NystromPreconditioner,
        rhs: Tensor,
        norm: Float64[np.ndarray, " m"],
        tolerance: float,
        stop_energy: NDArray[np.float64] | float,
        own_energy: NDArray[np.float64] | None = None,
    ) -> Asked:
        """Of a tolerance that all columns share."""
        residual = np.maximum(tolerance * norm, torch.finfo(rhs.dtype).tiny)
        energy = np.broadcast_to(np.asarray(stop_energy, dtype=np.float64), norm.shape)
        return cls(system, preconditioner, rhs, norm, residual, energy, tolerance, own_energy)

    def stopping(self, *, other_energies: bool) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
        """|r| and r'P^-1 r at which block CG stops.

        :param other_energies: it sees those of another P: then |r| alone counts. r'P^-1 r <= r'D^-1 r, which is |r|^2
            times the mean of 1 / D for residuals that do not depend on the noise.
        """
        if not other_energies:
            return self.residual, self.energy
        harmonic = self.system.size / float((1 / self.system.noise.double()).sum())
        energy = np.full_like(self.energy, math.inf) if self.own_energy is None else self.own_energy
        return np.minimum(self.residual, np.sqrt(self.energy * harmonic)), energy

    def beyond_rounding(self, solution: Tensor) -> bool:
        """Whether no residual from products in float32 could be certified."""
        system = self.system
        if system.dtype == torch.float64:
            return False
        (norm,) = to_host(torch.linalg.vector_norm(solution, dim=0, dtype=torch.float64))
        # What enters the likelihood is certified by a wide product: there it is the iterations that rounding must not
        # stop, which is a sixth of what certificates count.
        allowed = np.minimum(self.residual, 3 * self.stopping(other_energies=True)[0])
        # The scale itself may cost a pass.
        suspected = (system.largest_rounding_scale * norm > allowed).any()
        return bool(suspected and (system.rounding_scale * norm > allowed).any())

    def residual_of(self, solution: Tensor, *, wide: bool) -> Tensor:
        """b - A v, summed in float64 where it is ``wide``. One pass."""
        if not wide:
            return self.rhs - self.system.matmul(solution)
        return wide_residual(self.system, self.rhs, solution)

    def certify(
        self,
        solution: Tensor,
        residual: Tensor,
        correction: Tensor,
        roundings: int,
        *,
        with_energy: bool,
        slack: float = _OWN_SLACK,
    ) -> Solution | Reason | None:
        """The certified solution; None where the residual is too large, the reason where rounding alone is.

        What is said of the columns that enter the likelihood is certain: in float32 their residual is computed again,
        by a wide product of its own, and no rounding is left to be modelled.

        :param correction: P^-1 residual, of ``preconditioner`` or of what block CG was preconditioned with.
        :param roundings: of a product, that ``residual`` has gone through; 0 where it was summed in float64.
        :param with_energy: ask for the energies too, which block CG has seen otherwise, with that P^-1.
        :param slack: of ``own_energy``.
        """
        system = self.system
        known = None if with_energy else correction
        evidence = SolutionEvidence.gather(system, self.preconditioner, self.rhs, solution, residual, known)
        # Not the other way round: NaN is too large.
        if not (evidence.residual_norm <= self.residual).all():
            return None
        if self.own_energy is not None:
            (own_energy,) = to_host((residual.double() * correction).sum(0))
            if not (own_energy <= slack * self.own_energy).all():
                return None
        sharp = self.sharp_columns()
        if sharp and roundings:
            rhs, own = self.rhs[:, :sharp], solution[:, :sharp]
            exact = wide_residual(system, rhs, own)
            evidence = evidence.with_leading(SolutionEvidence.gather(system, self.preconditioner, rhs, own, exact))
        # Beside targets there are probes alone, whose signs are random; of other right-hand sides nothing is known.
        rounding = None
        if roundings and not sharp:
            # In float32 it is measured of the residual as it is, however often it was updated.
            often = roundings if system.dtype == torch.float64 else 1
            rounding = often * residual_error(system, self.rhs, solution, residual)
        return self.judge(evidence, solution, correction, roundings, with_energy=with_energy, rounding=rounding)

    def judge(
        self,
        evidence: SolutionEvidence,
        solution: Tensor,
        correction: Tensor,
        roundings: int,
        *,
        with_energy: bool,
        rounding: Float64[np.ndarray, " m"] | None = None,
    ) -> Solution | Reason | None:
        """What :meth:`certify` answers, from ``evidence`` whose first columns are exact where they have to be.

        :param rounding: of the residuals, where more is known of it than the model says.
        """
        system, sharp = self.system, self.sharp_columns()
        if rounding is None:
            rounding = roundings * system.rounding_scale * evidence.solution_norm
            rounding[:sharp] = 0
        if roundings <= 1 and (rounding > self.residual).any():
            return Reason.ROUNDING
        error = evidence.residual_norm + rounding
        small = (error <= self.residual).all() and (not with_energy or (evidence.energy <= self.energy).all())
        if not small:
            return None
        model = model_margin(system, evidence.solution_norm) if roundings else np.zeros_like(error)
        model[:sharp] = 0
        if not self._tight(evidence.bounds(model)):
            return Reason.ROUNDING
        bounds = evidence.bounds(model + system.quadratic_margin(evidence.solution_norm**2))
        quadratic = torch.from_numpy(evidence.quadratic)
        summed_wide = slice(sharp if roundings else None)
        error[summed_wide] += system.entry_scale * evidence.solution_norm[summed_wide]
        error += system.skew_norms(solution, lambda: system.matmul(solution), error)
        return Solution(solution, relative(error, self.norm), quadratic, bounds, 0, 0, Reason.CONVERGED, correction)

    def sharp_columns(self) -> int:
        """See :func:`sharp_columns`."""
        return sharp_columns(self.system, self.energy)

    def _tight(self, bounds: list[Interval]) -> bool:
        """Whether the quadratic forms that enter the likelihood (finite energy) are known to half the tolerance, as far
        as the solution decides."""
        likely = [bound for bound, energy in zip(bounds, self.energy.tolist(), strict=True) if energy < math.inf]
        return all(bound.width <= self.tolerance * max(self.system.size, bound.upper) for bound in likely)
