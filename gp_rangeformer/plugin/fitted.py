"""What a prediction strategy keeps between calls: A^-1 (y - m), and a factor or what variances are estimated from."""

from __future__ import annotations

import functools
import time
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from jaxtyping import Float, Float64
from linear_operator.operators import AddedDiagLinearOperator
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.eligibility import check_rhs
from gp_rangeformer.plugin.hooks import prepare_solve
from gp_rangeformer.plugin.owners import memory_of, remembered_bytes
from gp_rangeformer.plugin.reports import Call, account_solve
from gp_rangeformer.plugin.storage import choose_storage, hold
from gp_rangeformer.plugin.symmetric import belongs_to, symmetric_system
from gp_rangeformer.plugin.unevaluated import unevaluated
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.unseen_nystrom import UnseenNystrom
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.report import SolveReport, publish
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.estimated_variances import EstimatedVariances
from gp_rangeformer.solvers.exact import Exact, ExactPrepared, exact_path_fits, factorised, solve_by_factor
from gp_rangeformer.solvers.prediction import mean_beside_probes, mean_by_factor, mean_solve
from gp_rangeformer.solvers.probes import InversePairs
from gp_rangeformer.system.answers import Prepared, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.torch_modes import no_autocast

# Pairs of vectors behind estimated variances, over num_probes: their error falls as 1 / sqrt(pairs), and twice as many
# cost less than twice the neighbours (kin40k, n = 8000).
_PAIRS = 2
# n^3 up to which a factorisation answers a model's first prediction: n = 4,000, where it takes half a second (float64),
# and a preconditioner with neighbours as long.
_FACTORISED = 4000**3
# n^3 up to which a factorisation in the dtype of K may end what iterations beside probes do not: at n = 8,000 it takes
# as long as 20 of them, and as much memory as K. Tried first are as many as do where the noise is not small (at an
# optimum: pol, protein and elevators; kin40k takes 44).
_ENDED_BY_A_FACTOR, _TRIED = 10_000**3, 10
_BY_A_FACTOR = "refined by one factorisation, which costs less than the iterations that would be left"
# Vectors with the covariance A^-1, where a factor makes them in its own time: half of them would take twice the
# neighbours (kin40k, n = 8000, 10,000 points: 1.9 s a call instead of 1.4).
_DRAWN = 1024
# What such a factor may be off by, |L^-1 A L^-T z - z| / |z|: rounding has no direction, and a variance sees n^-1/2 of
# it (kin40k, n = 8000, noise 0.001, float32: 0.02).
_FACTOR_OFF = 0.05
# Deviations of the noise that rounding may move means by, from which on a note says so and K(test, train) is float64.
ROUNDED = 0.01
# Of prediction_error: what a draw may be off by in standard deviations, before it is weighed.
_DRAWS = 5


@dataclass(frozen=True)
class _Preconditioners:
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
    A^-1 (y - m), n x 1; ``factor``: of A, where the exact path has answered; ``preconditioners``: where the certified
    one has; ``rounded``: a factor in the dtype of K, where that ended iterations; ``pairs``, ``estimator``: once many
    variances were asked for; ``audit``: what was said of them at a few.
    """

    fused: FusedKernel
    noise: Float[Tensor, " n"]
    solver: Certified | Exact
    solution: Float64[Tensor, "n 1"]
    factor: Float[Tensor, "n n"] | None
    preconditioners: _Preconditioners | None
    state: tuple[Tensor, ...]  # what all this was computed from
    moved: float  # deviations of the noise that rounding of kernel entries may move means by
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

    def describes(self, strategy: Any) -> bool:
        """Whether nothing has changed since."""
        return _same(_state(strategy), self.state)

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
        if self.factor is None:
            self.factor = Exact(self.solver.prediction_tolerance).prepare(system).factor
        return self.factor

    def solve_draws(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """A^-1 of columns drawn with the covariance A: functions from a posterior take them. A report is published.

        Off by r with r' A^-1 r <= (5 prediction_error)^2, about: of a function's value given its neighbours that is as
        much of a standard deviation, and less (see :func:`~gp_rangeformer.solvers.prediction.mean_solve`).
        """
        started, system = time.perf_counter(), self.linear_system()
        known, reason = self.preconditioners, Reason.EXACT_MANY_COLUMNS
        if self.factor is None and known is not None:
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
            known = self.preconditioners = _preconditioners(prepared)
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
            self.pairs = rough.inverse_pairs(_PAIRS * known.solver.num_probes)
        keep_at_most(settings.memory_limit.value())
        return None if self.pairs is None else (known.vecchia, self.pairs)


_fitted: weakref.WeakKeyDictionary[DefaultPredictionStrategy, FittedModel] = weakref.WeakKeyDictionary()
_starts: weakref.WeakKeyDictionary[DefaultPredictionStrategy, Tensor] = weakref.WeakKeyDictionary()


def fitted_model(strategy: Any) -> FittedModel | None:
    """Of a strategy's training points, solved for its targets once, with a report; again where parameters, data or the
    solver have changed since. None where GPyTorch must answer.

    :raises RuntimeError, NanError: as :func:`~gp_rangeformer.plugin.eligibility.check_rhs`.
    """
    operator = strategy.lik_train_train_covar
    if type(operator) is not AddedDiagLinearOperator or type(operator._linear_op) is not LazyEvaluatedKernelTensor:
        return None
    with torch.no_grad(), no_autocast():
        known = _fitted.get(strategy)
        state = _state(strategy)
        if known is not None and known.solver == settings.solver.value() and _same(state, known.state):
            return known
        found = _fit(strategy, state)
    if found is not None:
        _fitted[strategy] = found
        keep_at_most(settings.memory_limit.value())
    return found


def start_from(strategy: Any, solution: Float64[Tensor, "n 1"]) -> None:
    """Where the solve for a strategy's targets may start."""
    _starts[strategy] = solution


def fitted_bytes() -> int:
    """Bytes that are kept for predictions of all models."""
    return sum(known.nbytes for known in _fitted.values())


def keep_at_most(limit: int) -> None:
    """Bytes, with what training remembers: what was solved for other models goes first, and of each its factor."""
    others = remembered_bytes()
    for strategy, known in list(_fitted.items()):
        if others + fitted_bytes() > limit:
            known.factor = known.rounded = None
        if others + fitted_bytes() > limit:
            del _fitted[strategy]


def forget_fitted() -> None:
    """What was solved for predictions."""
    _fitted.clear()
    _starts.clear()


def _fit(strategy: Any, state: tuple[Tensor, ...]) -> FittedModel | None:
    targets = strategy.train_labels
    system = unevaluated(_observed(strategy), targets.shape)
    if system is None or not isinstance(system.fused, FusedKernel):
        return None
    rhs = (targets - strategy.train_prior_dist.loc).unsqueeze(-1)
    if rhs.shape != (system.fused.n, 1) or rhs.dtype != system.noise.dtype:
        return None
    check_rhs(system, rhs)
    call = Call("solve", system, 1)
    linear_system = symmetric_system(call, system, system.kernel, system.noise, system.fused)
    prepared, reason = _prepared(linear_system, memory_of(system.owners, system.kernel, 0))
    solution, rounded = _solved(prepared, rhs, _starts.get(strategy))
    if rounded is not None:
        call.note(_BY_A_FACTOR if linear_system.held_dense else f"{_BY_A_FACTOR}, and formed K as a dense matrix")
    account_solve(call, linear_system, prepared, solution, reason)
    moved = _moved_by_rounding(linear_system, solution.value)
    if moved > ROUNDED:
        call.note(f"float32 entries of K may move means by {moved:.1g} of the noise's deviation: float64 helps")
    # While K is there: what variances need of solves that were made beside the targets'.
    pairs = None
    if isinstance(prepared, CertifiedPrepared) and rounded is None and len(prepared.solved_probes) >= _PAIRS:
        pairs = prepared.inverse_pairs(_PAIRS * prepared.solver.num_probes)
    call.publish()
    return FittedModel(
        _of_its_own(system.fused),
        system.noise.detach().clone(),
        settings.solver.value(),
        solution.value.double(),
        None if prepared.exact is None else prepared.exact.factor,
        _preconditioners(prepared),
        tuple(tensor.clone() for tensor in state),
        moved,
        rounded,
        pairs,
    )


def _prepared(system: LinearSystem, memory: Memory) -> tuple[Prepared, Reason | None]:
    """For the targets, and where a factorisation takes less than a preconditioner for what variances will ask, too."""
    solver = settings.solver.value()
    small = isinstance(solver, Certified) and solver.variances != "estimated" and system.size**3 <= _FACTORISED
    if small and system.size >= settings.min_size.value_on(system.device) and exact_path_fits(system, 1):
        return Exact(solver.prediction_tolerance).prepare(system), Reason.EXACT_MANY_COLUMNS
    return prepare_solve(system, memory, 1)


def _solved(
    prepared: Prepared, rhs: Float[Tensor, "n 1"], start: Float64[Tensor, "n 1"] | None
) -> tuple[Solution, Float[Tensor, "n n"] | None]:
    """A^-1 rhs; and a factor in the dtype of K, where that ended what iterations did not."""
    system = prepared.system
    if (
        isinstance(prepared, CertifiedPrepared)
        and prepared.vecchia is not None
        and system.size**3 <= _ENDED_BY_A_FACTOR
    ):
        found = mean_beside_probes(prepared, rhs, start, _TRIED)
        if found is not None:
            return found, None
        rounded = factorised(system, system.dtype) if exact_path_fits(system, 1) else None
        found = None if rounded is None else mean_by_factor(prepared, rhs, start, rounded.factor)
        if found is not None and rounded is not None:
            return found, rounded.factor
    return mean_solve(prepared, rhs, wide=True, start=start), None


def _moved_by_rounding(system: LinearSystem, solution: Tensor) -> float:
    """What the certificate of a mean leaves out, in deviations of the noise: that K is what its dtype holds of the
    kernel.

    Entries off by E, with signs of their own, move k*' A^-1 (y - m) by w'E x with w = A^-1 k*, whose length is about 1
    at most: about the rounding of an entry times |x|.
    """
    facts = system.diagonal_facts
    if system.dtype == torch.float64 or not facts.smallest_noise > 0:
        return 0.0
    entries = torch.finfo(system.dtype).eps * (facts.largest_total - facts.smallest_noise)
    return entries * float(torch.linalg.vector_norm(solution)) / facts.smallest_noise**0.5


def _preconditioners(prepared: Prepared) -> _Preconditioners | None:
    if not isinstance(prepared, CertifiedPrepared) or prepared.preconditioner is None or prepared.landmarks is None:
        return None
    nystrom = prepared.preconditioner
    if isinstance(nystrom, UnseenNystrom):
        nystrom = nystrom.eigen  # the other one holds A
    return _Preconditioners(prepared.solver, nystrom, prepared.landmarks, prepared.vecchia)


def _of_its_own(fused: FusedKernel) -> FusedKernel:
    """Without a graph, of numbers that nobody else changes."""
    arguments = tuple(argument.detach().clone() for argument in fused.arguments)
    parameters = tuple(parameter.detach().clone() for parameter in fused.parameters)
    return FusedKernel.of_arguments(fused.expression, arguments, fused.n, fused.dtype, parameters=parameters)


def _state(strategy: Any) -> tuple[Tensor, ...]:
    """What the answers depend on, as it is now."""
    lazy = strategy.lik_train_train_covar._linear_op
    parameters = (*lazy.kernel.parameters(), *strategy.likelihood.parameters())
    diagonal: Any = _observed(strategy)
    given = (diagonal._diag_tensor._diagonal(), lazy.x1, strategy.train_labels, strategy.train_prior_dist.loc)
    return tuple(tensor.detach() for tensor in (*parameters, *given))


def _observed(strategy: Any) -> Any:
    """K + D anew: the strategy's own keeps the noise that there was when it was made."""
    return strategy.likelihood(strategy.train_prior_dist, strategy.train_inputs).lazy_covariance_matrix


def _same(now: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> bool:
    return len(now) == len(before) and all(torch.equal(one, other) for one, other in zip(now, before, strict=True))
