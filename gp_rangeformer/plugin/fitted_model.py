"""A model's training points and what is known of A^-1: a solution, a factor, or what variances are estimated from."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpytorch.likelihoods import GaussianLikelihood
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.covered import parameters_of
from gp_rangeformer.plugin.hooks import prepare_solve
from gp_rangeformer.plugin.storage import choose_storage, hold
from gp_rangeformer.plugin.symmetric import belongs_to
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.unseen_nystrom import UnseenNystrom
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.report import SolveReport, publish
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.estimated_variances import EstimatedVariances
from gp_rangeformer.solvers.exact import Exact, ExactPrepared
from gp_rangeformer.solvers.factorisation import solve_by_factor
from gp_rangeformer.solvers.probes import InversePairs
from gp_rangeformer.system.answers import Prepared, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason

# Pairs of vectors behind estimated variances, over num_probes: their error falls as 1 / sqrt(pairs), and twice as many
# cost less than twice the neighbours (kin40k, n = 8000).
PAIRS = 2
# Vectors with the covariance A^-1, where a factor makes them in its own time: half of them would take twice the
# neighbours (kin40k, n = 8000, 10,000 points: 1.9 s a call instead of 1.4).
_DRAWN = 1024
# What such a factor may be off by, |L^-1 A L^-T z - z| / |z|: rounding has no direction, and a variance sees n^-1/2 of
# it (kin40k, n = 8000, noise 0.001, float32: 0.02).
_FACTOR_OFF = 0.05
# Of prediction_error: what a draw may be off by in standard deviations, before it is weighed.
_DRAWS = 5


@dataclass(frozen=True)
class Preconditioners:
    """Of A, without A."""

    solver: Certified
    nystrom: NystromPreconditioner
    landmarks: Landmarks
    vecchia: VecchiaPreconditioner | None

    def of(self, system: LinearSystem) -> CertifiedPrepared:
        return CertifiedPrepared(
            self.solver, system, Memory(), self.nystrom, None, landmarks=self.landmarks, vecchia=self.vecchia
        )


@dataclass
class FittedModel:
    """A = K + D of a model's training points, and what is known of A^-1. It holds no n x n matrix but a factor.

    ``fused``, ``noise``: K and D when the model was asked first; ``solver``: the one that was set then; ``solution``:
    A^-1 (y - m), n x 1; ``factor``: of A, or of A + ``jitter`` I, where the exact path has answered;
    ``preconditioners``: where the certified one has; ``rounded``: a factor in the dtype of K, where that ended
    iterations; ``pairs``, ``estimator``: once many variances were asked for; ``audit``: what was said of them at a few.
    """

    fused: FusedKernel
    noise: Float[Tensor, " n"]
    solver: Certified | Exact
    solution: Float64[Tensor, "n 1"]
    factor: Float[Tensor, "n n"] | None
    preconditioners: Preconditioners | None
    state: tuple[Tensor, ...]  # what all this was computed from
    moved: float  # deviations of the noise that rounding of kernel entries may move means by
    jitter: float = 0.0
    rounded: Float[Tensor, "n n"] | None = None
    pairs: InversePairs | None = None
    estimator: EstimatedVariances | None = None
    audit: str | None = None
    doubted: bool = False  # whether that was more than their standard errors allow

    @property
    def n(self) -> int:
        return self.fused.n

    @functools.cached_property
    def smallest_noise(self) -> float:
        return float(self.noise.amin())

    @property
    def nbytes(self) -> int:
        """Of the solution, the factor, the preconditioners and the pairs, which the estimator has once more: what is
        large."""
        kept = self.solution.numel() * self.solution.element_size()
        kept += sum(f.numel() * f.element_size() for f in (self.factor, self.rounded) if f is not None)
        known = self.preconditioners
        if known is not None:
            width = known.nystrom.rank
            if known.vecchia is not None:
                width += known.vecchia.explained.shape[1] + 6 * known.vecchia.pattern.neighbours.shape[1]
            kept += self.n * width * self.noise.element_size()
        if self.pairs is not None:
            kept += 3 * self.pairs.vectors.numel() * self.pairs.vectors.element_size()
        return kept

    def start(self, n: int) -> Float64[Tensor, "n 1"]:
        """Of the solve for the targets of these points and of others that come after them."""
        return torch.cat([self.solution, self.solution.new_zeros(n - self.n, 1)])

    def describes(self, strategy: Any) -> bool:
        """Whether nothing has changed since."""
        return same(state_of(strategy), self.state)

    def linear_system(self) -> LinearSystem:
        """A, with K made anew.

        :raises InsufficientMemoryError: as :func:`~gp_rangeformer.plugin.storage.choose_storage`.
        """
        storage = choose_storage(self.n, self.fused.dtype, self.noise.device)
        kernel = self.fused.evaluate() if storage.dense else hold(self.fused, storage)[1]
        system = LinearSystem(kernel, self.noise)
        belongs_to(system, self.fused)
        return system

    def factorised(self, system: LinearSystem) -> Float[Tensor, "n n"]:
        """The factor of A, made once.

        :raises NotPSDError: as :meth:`~gp_rangeformer.solvers.exact.Exact.prepare`.
        """
        known = self.factor
        if known is None:
            prepared = Exact(self.solver.prediction_tolerance).prepare(system)
            known = self.factor = prepared.factor  # which another thread may forget again
            self.jitter = prepared.jitter
        return known

    def solve_draws(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """A^-1 of columns drawn with the covariance A: functions from a posterior take them. A report is published.

        Off by r with r' A^-1 r <= (5 prediction_error)^2, about: of a function's value given its neighbours that is as
        much of a standard deviation, and less (see :func:`~gp_rangeformer.solvers.predictive_means.mean_solve`).
        """
        started, system = time.perf_counter(), self.linear_system()
        known, reason = self.preconditioners, Reason.EXACT_MANY_COLUMNS
        # A factor that is there by chance, because variances were read before, would change the bits.
        by_factor = self.factor is not None and (known is None or settings.deterministic.off())
        if not by_factor and known is not None:
            near = None if self.rounded is None else solve_by_factor(self.rounded, rhs)
            solution = known.of(system).solve_draws(rhs, (_DRAWS * known.solver.prediction_error) ** 2, near)
            if solution.converged:
                self._report_solve(solution, "rangeformer", solution.reason, system, started)
                return solution.value
            reason = solution.reason
        tolerance = self.solver.prediction_tolerance
        exact = ExactPrepared(system, self.factorised(system), jitter=0.0, tolerance=tolerance)
        solution = exact.solve(rhs)
        self._report_solve(solution, "exact", reason, system, started)
        return solution.value

    def _report_solve(
        self, solution: Solution, solver: str, reason: Reason, system: LinearSystem, started: float
    ) -> None:
        self.report(
            "solve",
            system,
            started,
            solver=solver,
            reason=reason,
            columns=solution.value.shape[1],
            iterations=solution.iterations,
            residual=float(solution.residual.max()),
        )

    def report(self, operation: str, system: LinearSystem | None, started: float, **found: Any) -> None:
        """Publish what was ``found``, fields of a :class:`~gp_rangeformer.report.SolveReport`, with what is the same in
        all of them. ``system``: that was asked, if one was."""
        passes, multiplied = (0, 0) if system is None else system.take_counts()
        publish(
            SolveReport(
                operation,
                n=self.n,
                dtype=str(self.fused.dtype).removeprefix("torch."),
                device=str(self.noise.device),
                passes=passes,
                columns_multiplied=multiplied,
                seconds=time.perf_counter() - started,
                **found,
            )
        )

    def estimated(self, system: LinearSystem) -> EstimatedVariances | None:
        """What variances of many points are estimated from, solved once; None where there are no neighbours or a solve
        does not certify."""
        if self.estimator is None:
            found = self.inverse_pairs(system)
            if found is not None:
                self.estimator = EstimatedVariances(found[0], self.noise, found[1])
        return self.estimator

    def inverse_pairs(self, system: LinearSystem) -> tuple[VecchiaPreconditioner, InversePairs] | None:
        """What they rest on."""
        known = self.preconditioners
        if known is None:
            # Where a factorisation has answered for the targets.
            prepared, _ = prepare_solve(system, Memory(), 1)
            known = self.preconditioners = preconditioners_of(prepared)
        if known is None:
            return None
        if known.vecchia is None:
            vecchia = known.solver.with_neighbours(system, known.landmarks, Memory(), known.solver.neighbours)
            known = self.preconditioners = replace(known, vecchia=vecchia)
        if known.vecchia is None:
            return None
        factor = self.rounded if self.factor is None else self.factor
        if self.pairs is None and factor is not None:
            signs = known.solver.probe_vectors(system, _DRAWN)
            self.pairs = InversePairs.of_factor(system, factor, signs, _FACTOR_OFF, known.vecchia.small_variance())
        if self.pairs is None:
            # To the tolerance of a training step, as the probes of its gradient are.
            rough = replace(known, solver=replace(known.solver, tolerance=self.solver.tolerance)).of(system)
            self.pairs = rough.inverse_pairs(PAIRS * known.solver.num_probes)
        return None if self.pairs is None else (known.vecchia, self.pairs)


def preconditioners_of(prepared: Prepared) -> Preconditioners | None:
    """What is left of a prepared system without A; None where the exact path has answered."""
    if not isinstance(prepared, CertifiedPrepared) or prepared.preconditioner is None or prepared.landmarks is None:
        return None
    nystrom = prepared.preconditioner
    if isinstance(nystrom, UnseenNystrom):
        nystrom = nystrom.eigen  # the other one holds A
    return Preconditioners(prepared.solver, nystrom, prepared.landmarks, prepared.vecchia)


def state_of(strategy: Any) -> tuple[Tensor, ...]:
    """What the answers depend on, as it is now: parameters, then noise, points, targets and their prior means."""
    lazy, likelihood = strategy.lik_train_train_covar._linear_op, strategy.likelihood
    parameters = (*parameters_of(lazy.kernel), *parameters_of(likelihood))
    if type(likelihood) is GaussianLikelihood:
        noise = likelihood.noise  # one number, in a tenth of the time
    else:
        diagonal: Any = observed(strategy)
        noise = diagonal._diag_tensor._diagonal()
    given = (noise, lazy.x1, strategy.train_labels, strategy.train_prior_dist.loc)
    return tuple(tensor.detach() for tensor in (*parameters, *given))


def observed(strategy: Any) -> Any:
    """K + D anew: the strategy's own keeps the noise that there was when it was made."""
    return strategy.likelihood(strategy.train_prior_dist, strategy.train_inputs).lazy_covariance_matrix


def same(now: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> bool:
    return len(now) == len(before) and all(torch.equal(one, other) for one, other in zip(now, before, strict=True))
