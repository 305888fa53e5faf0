"""The network's own answers, let through for research: nothing is refined, everything is measured.

The residual is recomputed, and the network's range gives a preconditioner P <= A, so that the intervals of the
certified solver hold here too: they say how far off the answer may be. An answer outside tolerance has reason DIRECT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.certificate import inv_quad_bounds, logdet_bounds, relative_residual
from gp_rangeformer.preconditioner.nystrom import (
    NystromPreconditioner,
    PreconditionerError,
    ProposedTestMatrix,
    nystrom_preconditioner,
)
from gp_rangeformer.rangeformer import answer
from gp_rangeformer.rangeformer.answer import Answer
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.arguments import check_count
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.solvers.gradient_weight import GradientWeight
from gp_rangeformer.system.answers import Evaluation, Interval, LogDet, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason

_LOGARITHM = 1e-13  # rounding of one logarithm: its range is orthonormal to 1e-14
_RECURRENCE = 0.9  # of the tolerance is asked of residuals that are not recomputed


@dataclass(frozen=True)
class Direct:
    """For research: every answer is the network's own. It is measured, a warning says when it is outside tolerance, and
    nothing corrects it, at any size from ``exact_size`` on. Inverse roots stay certified.

    :param certified: whose probes and tolerances these are.
    :param network: ``network(system, rhs) -> Answer``; None for the shipped RangeFormer, seeded as ``certified`` is.
    :param columns: of the shipped network's range, at most: it grows until all residuals are within tolerance, or so
        far. O(n columns^2) a call.
    """

    certified: Certified = field(default_factory=Certified)
    network: Callable[[LinearSystem, Tensor], Answer] | None = None
    columns: int = 1024

    def __post_init__(self) -> None:
        if not isinstance(self.certified, Certified):
            raise ValueError(f"certified of Direct must be a Certified, got {self.certified!r}")
        check_count(self, "columns", 1)
        if self.network is not None and (isinstance(self.network, type) or not callable(self.network)):
            raise ValueError(f"network of Direct must be a function of a system and right-hand sides: {self.network!r}")

    @property
    def tolerance(self) -> float:
        return self.certified.tolerance

    @property
    def prediction_tolerance(self) -> float:
        return self.certified.prediction_tolerance

    @property
    def for_predictions(self) -> Direct:
        return replace(self, certified=self.certified.for_predictions)

    @property
    def thin_columns(self) -> int:
        """n-vectors beside K in a training step: the range, its image and its root in float64, and room to grow."""
        return self.certified.thin_columns + 8 * self.columns

    def ask(self, system: LinearSystem, rhs: Float[Tensor, "n m"], probes: int = 0) -> Answer:
        """The network's answer, unverified. ``probes``: how many of the right-hand sides, the last, are."""
        if self.network is not None:
            return self.network(system, rhs)
        certified = self.certified
        # Residuals by recurrence, which those that are measured may exceed by rounding.
        tolerance = _RECURRENCE * certified.tolerance if rhs.shape[1] else None
        return answer.answer(system, rhs, columns=self.columns, tolerance=tolerance, probes=probes, seed=certified.seed)

    def prepare(self, system: LinearSystem, memory: Memory | None = None) -> DirectPrepared:
        """No other work yet than looking for NaN: the network sees matrix and right-hand sides together.

        :raises NanError: as the exact path, if K or D is not finite.
        """
        if not system.is_finite():
            Exact(self.certified.tolerance).prepare(system)
        return DirectPrepared(self, system)


@dataclass
class DirectPrepared:
    """See :class:`Direct`. The network has no answer for inverse roots."""

    solver: Direct
    system: LinearSystem

    @property
    def exact(self) -> None:
        """Nothing is factorised."""

    def solve(self, rhs: Float[Tensor, "n m"]) -> Solution:
        """The network's A^-1 rhs with its true residual; the reason is CONVERGED only within tolerance.

        :raises ValueError: ``rhs`` holds NaN or infinity.
        :raises torch.linalg.LinAlgError: the shipped network finds A indefinite.
        """
        solution, _, _ = self._measured(rhs)
        return solution

    def logdet(self) -> LogDet:
        """The network's log|A| beside its rigorous interval, which it may leave."""
        _, preconditioner, found = self._measured(self.system.noise.new_zeros(self.system.size, 0))
        return self._logdet(preconditioner, found)

    def evaluate(self, rhs: Float[Tensor, "n m"], with_logdet: bool = True) -> Evaluation:
        """Quadratic forms, log|A| and the gradient of both, from the network's solutions for [rhs, probes]. Raises as
        :meth:`solve`."""
        system, m = self.system, rhs.shape[1]
        certified = self.solver.certified
        probes = certified.probe_vectors(system) if with_logdet else rhs.new_empty(system.size, 0)
        solution, preconditioner, found = self._measured(torch.cat([rhs, probes], dim=1), probes.shape[1])
        value = solution.value
        logdet = self._logdet(preconditioner, found) if with_logdet else None
        outside = logdet is not None and not _widened(logdet.rigorous, system.size).contains(logdet.value)
        reason = Reason.DIRECT if outside else solution.reason
        weight = _gradient_weight(preconditioner, system.noise, value[:, :m], probes, value[:, m:])
        # The network's own value, uncorrected.
        quadratic = (rhs.double() * value[:, :m].double()).sum(0)
        return Evaluation(
            solution=replace(solution.leading(m), reason=reason, quadratic=quadratic.cpu()),
            residual=float(solution.residual.max()) if solution.residual.numel() else 0.0,
            logdet=logdet,
            weight=weight,
            inv_quad=quadratic.to(rhs.dtype),
        )

    def _measured(self, rhs: Tensor, probes: int = 0) -> tuple[Solution, NystromPreconditioner | None, Answer]:
        system, before = self.system, self.system.passes
        if not bool(rhs.isfinite().all()):
            raise ValueError("the right-hand side holds NaN or infinity: clean the targets")
        found = self.solver.ask(system, rhs, probes)
        value = found.solution
        residual = rhs - system.matmul(value) if rhs.shape[1] else rhs
        relative = relative_residual(system, rhs, value, residual)
        try:
            preconditioner = nystrom_preconditioner(system, ProposedTestMatrix(found.range, found.image))
            quadratic, bounds = inv_quad_bounds(system, preconditioner, rhs, value, residual)
        except PreconditionerError:
            preconditioner, quadratic = None, (rhs.double() * value.double()).sum(0).cpu()
            bounds = [Interval(-float("inf"), float("inf"))] * rhs.shape[1]
        within = bool((relative <= self.solver.certified.tolerance).all())
        reason = Reason.CONVERGED if within else Reason.DIRECT
        return Solution(value, relative, quadratic, bounds, 0, system.passes - before, reason), preconditioner, found

    def _logdet(self, preconditioner: NystromPreconditioner | None, found: Answer) -> LogDet:
        everything = Interval(-float("inf"), float("inf"))
        rigorous = everything if preconditioner is None else logdet_bounds(self.system, preconditioner)
        return LogDet(value=found.logdet, rigorous=rigorous)


def _widened(certain: Interval, size: int) -> Interval:
    """By the rounding of a sum of ``size`` logarithms of Ritz values in float64."""
    margin = _LOGARITHM * size
    return Interval(certain.lower - margin, certain.upper + margin)


def _gradient_weight(
    preconditioner: NystromPreconditioner | None,
    noise: Tensor,
    solutions: Tensor,
    probes: Tensor,
    probe_solutions: Tensor,
) -> GradientWeight:
    if preconditioner is None:
        return GradientWeight(solutions, probes, probe_solutions, noise, None)
    return GradientWeight.build(preconditioner, noise, solutions, probes, probe_solutions)
