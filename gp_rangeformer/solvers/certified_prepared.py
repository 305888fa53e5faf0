"""A preconditioned system: what the certified solver answers about it, and what it learns for the next one."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.allocation.free_memory import because
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.logdet.checked import checked_logdet, lanczos_value
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.unseen_nystrom import UnseenNystrom
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.recycling.first_guess import extrapolate, fit_to_rows, sample_rows
from gp_rangeformer.recycling.galerkin import galerkin
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.block_cg import block_cg
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact, ExactPrepared
from gp_rangeformer.solvers.factorisation import exact_path_fits
from gp_rangeformer.solvers.gradient_weight import GradientCheck, GradientWeight
from gp_rangeformer.solvers.low_rank_root import low_rank_root
from gp_rangeformer.solvers.next_effort import gap_for_neighbours, learn_from_step
from gp_rangeformer.solvers.probes import InversePairs, Probes
from gp_rangeformer.solvers.refinement import failed, refine
from gp_rangeformer.solvers.unseen_step import UnseenStep, start_step
from gp_rangeformer.system.answers import Evaluation, InverseRoot, LogDet, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.small_cores import to_host

# The quadratic form may miss this share of the tolerance, in nats per point: 0.5 r'P^-1 r <= 0.1 * tolerance * n.
_ENERGY_SHARE = 0.1
# Times num_probes that a gradient may take.
_MOST_PROBES = 4
# Of the tolerance: for probes, whose solution is known but for its small part A^-1 b - W'z, and for targets: near an
# optimum the gradient misses what they do (pol, n = 4000: 6.5 % of it with 1, 4.1 % with 0.1, for two iterations).
_WHITENED_SHARE, _TARGET_SHARE = 2.0, 0.1
# Of a rough solution: the share of b'A^-1 b that it may miss, and passes.
_ROUGH, _ROUGH_PASSES = 0.01, 40
_WHITENED = "with neighbours Lanczos takes over from the learned log determinant, in few passes"
# Why neighbours are tried before the exact path.
_TOO_HARD = (Reason.STAGNATION, Reason.MAX_PASSES)
# Where even those would be too few: a factorisation costs as much as n / 8 columns in the two to four passes of a warm
# step, and a second at n = 5000 (float32, two cores). It then answers this step and some that follow.
_PROBES_AS_EXACT, _EXACT_GRADIENT, _EXACT_STEPS = 8, 5000, 24


@dataclass
class CertifiedPrepared:
    """A preconditioned system with its memory. ``proposed``: its preconditioner, which nobody may have looked at;
    ``known_failure``: why the exact path must answer, as far as that is known already."""

    solver: Certified
    system: LinearSystem
    memory: Memory
    proposed: NystromPreconditioner | None
    known_failure: Reason | None
    landmarks: Landmarks | None = None  # those of the preconditioner, which the memory need not have kept
    vecchia: VecchiaPreconditioner | None = None  # what is iterated with; the other one certifies
    exact: ExactPrepared | None = field(default=None, repr=False)  # once the exact path had to answer
    # A^-1 W^-1 z of whitened probes that were solved beside other columns, 32 at a time.
    solved_probes: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def failure(self) -> Reason | None:
        """Why the exact path must answer, or None. Looks at a preconditioner that nobody has looked at."""
        if isinstance(self.proposed, UnseenNystrom) and self.proposed.failure is not None:
            self.known_failure = self.proposed.failure
            self.proposed = self.vecchia = None
            if self.known_failure is Reason.NOT_PSD:
                self.memory.forget_landmarks()
        return self.known_failure

    @property
    def preconditioner(self) -> NystromPreconditioner | None:
        """None where the exact path must answer."""
        return self.proposed if self.failure is None else None

    def solve(self, rhs: Float[Tensor, "n m"]) -> Solution:
        """A^-1 rhs to ``tolerance``; the reason is CONVERGED, or says why the exact path answered."""
        solution = self.attempt(rhs, self.memory.recall_column(rhs))
        if solution.converged:
            return solution
        return replace(self._exact_prepared(solution.reason).solve(rhs), reason=solution.reason)

    def approximate(self, rhs: Float[Tensor, "n m"], energy: float = _ROUGH) -> Tensor:
        """A^-1 rhs, n x m, to about ``energy`` of every b'A^-1 b and without a certificate: what curvature asks. At
        most ``_ROUGH_PASSES`` passes; exact where a factorisation is there."""
        if self.exact is not None or self.preconditioner is None:
            return self._exact_prepared(self.failure or Reason.NOT_PSD).solve(rhs).value
        own = self.vecchia or self.preconditioner
        (reach,) = to_host((rhs.double() * own.solve(rhs).double()).sum(0))
        found = block_cg(
            self.system, own, torch.zeros_like(rhs), rhs,
            stop_norm=torch.full(rhs.shape[1:], math.inf, dtype=torch.float64, device="cpu"),
            stop_energy=torch.from_numpy(np.maximum(energy * reach, np.finfo(np.float32).tiny)),
            max_passes=_ROUGH_PASSES,
        )  # fmt: skip
        return found.value

    def logdet(self) -> LogDet:
        """log|A| by Lanczos with both intervals, or from the exact path."""
        logdet = self._lanczos_logdet(self.signs(self.solver.num_probes)) if self.failure is None else None
        return logdet if logdet is not None else self._exact_prepared(self.failure or Reason.NOT_PSD).logdet()

    def solve_draws(
        self, rhs: Float[Tensor, "n m"], energy: float, initial: Float[Tensor, "n m"] | None = None
    ) -> Solution:
        """A^-1 of columns that were drawn with the covariance A, to ``tolerance`` and, where there are neighbours, to
        about r' A^-1 r <= ``energy``: what draws from a posterior are off by. Never by the exact path."""
        own = None if self.vecchia is None else np.full(rhs.shape[1], energy)
        return self._refined(rhs, initial, math.inf, own)

    def inverse_pairs(self, count: int) -> InversePairs | None:
        """Pairs whose products' mean is A^-1, from whitened probes; None where there are no neighbours, or what they
        are solved to does not certify. A training step's iterations, and two passes more."""
        if self.failure is not None or self.vecchia is None:
            return None
        probes = Probes.whitened(self.signs(count), self.vecchia).imaged(self.system)
        assert probes.near is not None
        assert probes.image is not None
        known: list[Tensor] = []
        while len(known) in self.solved_probes:
            known.append(self.solved_probes[len(known)])
        solved = torch.cat([probes.near[:, :0], *known], dim=1)[:, :count]
        if solved.shape[1] < count:
            left = slice(solved.shape[1], count)
            unbounded = np.full(count - left.start, math.inf)
            further = replace(probes, signs=probes.signs[:, left], rhs=probes.rhs[:, left])
            found = self._refined(further.rhs, probes.near[:, left], unbounded, self._own_energy(further, 0))
            if not found.converged:
                return None
            solved = torch.cat([solved, found.value], dim=1)
        image = self.system.matmul(solved)
        return InversePairs(torch.cat([probes.near, solved], 1), torch.cat([probes.image, image], 1))

    def inv_root(self) -> InverseRoot:
        """A tall root S = B (B'AB)^-1/2 on the preconditioner's range when it is accurate enough, else the exact one.

        S S' <= A^-1, so predictive variances can only come out too large; by how much is estimated at random training
        points, relative to variance plus noise, and must stay below ``tolerance``; away from clusters of them it may be
        some hundred times as much (measured: 1e-4 where 1e-7 is stated).
        """
        root = None
        if self.preconditioner is not None:
            solve = functools.partial(self.attempt, initial=None)
            root = low_rank_root(self.system, self.preconditioner, solve, self.solver.seed + 2)
        if root is not None and root.error <= self.solver.tolerance:
            return root
        reason = self.failure if self.failure is not None else Reason.EXACT_LOW_RANK
        return replace(self._exact_prepared(reason).inv_root(), reason=reason)

    def evaluate(
        self, rhs: Float[Tensor, "n m"], with_logdet: bool = True, gradient_check: GradientCheck | None = None
    ) -> Evaluation:
        """Quadratic forms, log|A| and their gradient: one block solve for [rhs, probes], one Lanczos run at most.

        :param gradient_check: as long as it finds more than is allowed, twice as many probes are solved, up to four
            times ``num_probes``, and later steps keep them. The exact path answers where that will not do.
        """
        solver, system = self.solver, self.system
        if self.known_failure is not None:
            return self._exact_evaluation(rhs, with_logdet, self.known_failure)
        if self.memory.exact_steps > 0 and with_logdet:
            self.memory.exact_steps -= 1
            return self._exact_evaluation(rhs, with_logdet, Reason.EXACT_GRADIENT)
        m = rhs.shape[1]
        # What was found to be needed, within what is asked for now.
        count = min(max(self.memory.num_probes or 0, solver.num_probes), _MOST_PROBES * solver.num_probes)
        signs = self.signs(count) if with_logdet else rhs[:, :0]
        energy = np.full(m + signs.shape[1], math.inf)
        energy[:m] = 2 * _ENERGY_SHARE * solver.tolerance * system.size
        unseen = None
        if isinstance(self.proposed, UnseenNystrom):
            unseen = start_step(self, self.proposed, rhs, signs, energy)
            if self.failure is not None:
                return self._exact_evaluation(rhs, with_logdet, self.failure)
        probes, solution = self._solve_step(rhs, signs, energy, unseen)
        if solution.reason in _TOO_HARD and self._strengthen():
            probes, solution = self._solve_step(rhs, signs, energy)
        if not solution.converged:
            self.memory.record_failure()
            return self._exact_evaluation(rhs, with_logdet, solution.reason)
        probes = probes.imaged(system)
        logdet = self._logdet_of_step(probes, solution, m, unseen) if with_logdet else None
        if with_logdet and logdet is None:
            self.memory.record_failure()
            return self._exact_evaluation(rhs, with_logdet, Reason.NOT_PSD)
        if gradient_check is not None and with_logdet:
            known = self._known(probes, solution, m, gradient_check)
            if known is None:
                self.memory.exact_steps, self.memory.gradient_calls = _EXACT_STEPS, 0
                return self._exact_evaluation(rhs, with_logdet, Reason.EXACT_GRADIENT)
            probes, solution = known
        assert self.preconditioner is not None
        near, facts = probes.near_block(m), self.preconditioner.facts
        learn_from_step(self.memory, solver, system, facts, solution, near, logdet)
        return Evaluation(
            solution=solution.leading(m),
            residual=float(solution.residual.max()),
            logdet=logdet,
            weight=self._weight(probes, solution, m),
            inv_quad=solution.quadratic[:m].to(rhs),
        )

    def _solve_step(
        self,
        rhs: Float[Tensor, "n m"],
        signs: Float[Tensor, "n p"],
        energy: NDArray[np.float64],
        unseen: UnseenStep | None = None,
    ) -> tuple[Probes, Solution]:
        """Targets and probes in one block.

        :param unseen: answers where it certifies; what does not goes on where it got to.
        """
        found = None if unseen is None else unseen.certified()
        if unseen is not None and found is not None:
            return unseen.probes, found
        probes, block = self.block_of(rhs, signs)
        first = self.predict(block, probes, rhs.shape[1]) if unseen is None else unseen.value
        return probes, self._refined(block, first, energy, self._own_energy(probes, rhs.shape[1]))

    def block_of(self, rhs: Float[Tensor, "n m"], signs: Float[Tensor, "n p"]) -> tuple[Probes, Float[Tensor, "n k"]]:
        """Probes, and all right-hand sides: targets first."""
        probes = self._probes_of(signs)
        return probes, torch.cat([rhs, probes.rhs], dim=1)

    def _probes_of(self, signs: Float[Tensor, "n p"]) -> Probes:
        """Whitened where there are neighbours, unless an estimator of log|A| expects plain ones."""
        plain = callable(self.solver.logdet) or self.solver.logdet == "quadrature"
        if self.vecchia is None or plain or signs.shape[1] == 0 or library_on(self.system.device) is None:
            return Probes(signs, signs)
        return Probes.whitened(signs, self.vecchia)

    def _own_energy(self, probes: Probes, m: int) -> NDArray[np.float64] | None:
        """r'P^-1 r to reach, in the P that whitens: |W r| against |z|, as |r| against |b| for plain probes, which would
        count the large directions of A alone for W b = z. Of targets too, whose y'A^-1 y is about n."""
        if probes.near is None:
            return None
        unit = self.solver.tolerance**2 * self.system.size
        energy = np.full(m + probes.signs.shape[1], _WHITENED_SHARE**2 * unit)
        energy[:m] = _TARGET_SHARE**2 * unit
        return energy

    def _known(
        self, probes: Probes, solution: Solution, m: int, check: GradientCheck
    ) -> tuple[Probes, Solution] | None:
        """As many probes as the gradient needs, within limits, and what they were solved to; None where the exact path
        costs less than those that it needs."""
        quadratic = float(solution.quadratic[:m].sum())
        if not check.due(solution.quadratic[m:], quadratic):
            return probes, solution
        while (excess := check(self._weight(probes, solution, m), quadratic)) > 1:
            count = probes.signs.shape[1]
            if self._hopeless(count * excess**2):
                return None
            if count >= _MOST_PROBES * self.solver.num_probes:
                break
            further = self._probes_of(self.signs(2 * count)[:, count:])  # as many again
            unbounded = np.full(further.signs.shape[1], math.inf)
            solved = self._refined(further.rhs, further.near, unbounded, self._own_energy(further, 0))
            if not solved.converged:
                break
            probes, solution = probes.joined(further.imaged(self.system)), solution.joined(solved)
            self.memory.num_probes = probes.signs.shape[1]
        return probes, solution

    def _hopeless(self, needed: float) -> bool:
        """Whether so many probes would cost more than a factorisation, of a size that makes one bearable."""
        n, most = self.system.size, _MOST_PROBES * self.solver.num_probes
        return needed > max(most, n / _PROBES_AS_EXACT) and n <= _EXACT_GRADIENT and exact_path_fits(self.system, 1)

    def _weight(self, probes: Probes, solution: Solution, m: int) -> GradientWeight:
        assert self.preconditioner is not None
        value = solution.value
        return probes.weight(self.preconditioner, self.system.noise, value[:, :m], value[:, m:])

    def signs(self, count: int) -> Float[Tensor, "n p"]:
        """Rademacher vectors that probes are made of: the first of any larger number."""
        solver, system = self.solver, self.system
        key = system.size, count, solver.num_probes, solver.seed, system.dtype, system.device
        return self.memory.drawn("probes", key, lambda: solver.probe_vectors(system, count))

    def predict(self, block: Tensor, probes: Probes, m: int) -> Tensor | tuple[Tensor, Tensor] | None:
        near = probes.near_block(m)
        if probes.signs.shape[1] and self.memory.whitened_by is not probes.pattern:
            self.memory.forget_solutions(probes.pattern)
        solutions = self.memory.recall(block)
        predictor = self.solver.predictor
        if not solutions or predictor == "none":
            return near
        if predictor == "galerkin" and near is None:
            return galerkin(self.system, torch.cat(solutions[-2:], dim=1), block)
        if predictor == "rows":
            corrections = self.memory.recall_corrections(block)
            found = fit_to_rows(self.system, block, (*solutions, *corrections), self._rows(), near)
        else:
            found = solutions[-1] if predictor == "previous" else extrapolate(solutions)
        return found if near is None or found is None else near + found

    def _rows(self) -> Tensor:
        landmarks = self.landmarks
        assert landmarks is not None
        n, seed = self.system.size, self.solver.seed + 4

        def draw() -> Tensor:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
            return sample_rows(order.to(landmarks.index.device), landmarks.index)

        return self.memory.drawn("rows", (n, seed, landmarks), draw)

    def attempt(
        self,
        rhs: Tensor,
        initial: Tensor | tuple[Tensor, Tensor] | None,
        *,
        stop_energy: NDArray[np.float64] | float = math.inf,
    ) -> Solution:
        """As :func:`~gp_rangeformer.solvers.refinement.refine`: what fails is never answered by the exact path."""
        found = self._refined(rhs, initial, stop_energy)
        if found.reason in _TOO_HARD and self._strengthen():
            return self._refined(rhs, initial, stop_energy)
        return found

    def _refined(
        self,
        rhs: Tensor,
        initial: Tensor | tuple[Tensor, Tensor] | None,
        stop_energy: NDArray[np.float64] | float,
        own_energy: NDArray[np.float64] | None = None,
    ) -> Solution:
        if self.preconditioner is None:
            return failed(rhs, self.failure or Reason.NOT_PSD, 0, 0)
        return refine(
            self.system,
            self.preconditioner,
            rhs,
            initial,
            tolerance=self.solver.tolerance,
            stop_energy=stop_energy,
            max_passes=self.solver.max_passes,
            iterated=self.vecchia,
            own_energy=own_energy,
        )

    def _strengthen(self) -> bool:
        """All neighbours, where there were none and landmarks alone are not enough."""
        landmarks, memory = self.landmarks, self.memory
        if self.vecchia is not None or landmarks is None:
            return False
        self.vecchia = self.solver.with_neighbours(self.system, landmarks, memory, self.solver.neighbours)
        if self.vecchia is not None and self.solver.adaptive_rank:
            memory.neighbour_count, memory.trial = self.solver.neighbours, None
            memory.iterations = ()
        return self.vecchia is not None

    def _logdet_of_step(self, probes: Probes, solution: Solution, m: int, unseen: UnseenStep | None) -> LogDet | None:
        solver, system, preconditioner = self.solver, self.system, self.preconditioner
        assert preconditioner is not None
        own, signs = slice(m, m + solver.num_probes), probes.signs[:, : solver.num_probes]
        trace = probes.inverse_trace(solution.value[:, own], solution.quadratic[own])
        share = trace * system.diagonal_facts.smallest_noise / system.size
        if solver.tail is None:
            return self._lanczos_logdet(signs, share, probes.image)
        if probes.near is not None:
            found = self._lanczos_logdet(signs, share, probes.image)
            return None if found is None else replace(found, note=_WHITENED)
        # Trained on as many probes as are asked for, not on those that a gradient needed besides.
        estimate = None if unseen is None else unseen.tail(solution.value, solution.quadratic[own])
        if estimate is None:
            estimate = solver.tail(system, preconditioner, signs, solution.value[:, own], solution.quadratic[own])
        unsure = estimate.half_width > solver.logdet_tolerance
        if unsure and self.memory.rank is not None and not self._gap() > self.solver.neighbours_above:
            # Twice the landmarks leave a shorter tail to estimate, and cost less than Lanczos in every step.
            self.memory.rank = min(2 * self.memory.rank, solver.rank)
        lanczos = functools.partial(self._lanczos_logdet, signs, share)
        tolerance = solver.logdet_tolerance
        return checked_logdet(system, preconditioner, self.memory, estimate, tolerance, lanczos, self.vecchia)

    def _lanczos_logdet(self, signs: Tensor, share: float | None = None, image: Tensor | None = None) -> LogDet | None:
        """None if the Ritz values disprove that K is positive semi-definite.

        :param image: A W' of the signs, where they whiten.
        """
        assert self.preconditioner is not None
        count = min(max(2, self.solver.num_logdet_probes), signs.shape[1])
        if share is None:
            share = float(self.preconditioner.leverage.mean())
        return lanczos_value(
            self.system,
            self.preconditioner,
            signs[:, :count],
            truncation=0.01 * self.solver.tolerance,
            share=share,
            vecchia=self.vecchia,
            image=None if image is None else image[:, :count],
        )

    def _gap(self) -> float:
        assert self.preconditioner is not None
        return gap_for_neighbours(self.solver, self.system, self.preconditioner.facts)

    def _exact_prepared(self, reason: Reason) -> ExactPrepared:
        if self.exact is None:
            if reason is Reason.PAUSED:
                self.memory.pause -= 1
            with because(reason.value):
                self.exact = Exact(self.solver.tolerance).prepare(self.system)
        return self.exact

    def _exact_evaluation(self, rhs: Tensor, with_logdet: bool, reason: Reason) -> Evaluation:
        return replace(self._exact_prepared(reason).evaluate(rhs, with_logdet), fallback_reason=reason)
