"""What a prediction strategy keeps between calls, and how its targets are solved for first."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
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
from gp_rangeformer.plugin.fitted_model import PAIRS, FittedModel, observed, preconditioners_of, same, state_of
from gp_rangeformer.plugin.hooks import prepare_solve
from gp_rangeformer.plugin.owners import memory_of, remembered_bytes
from gp_rangeformer.plugin.reports import Call, account_solve
from gp_rangeformer.plugin.symmetric import symmetric_system
from gp_rangeformer.plugin.unevaluated import unevaluated
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.appended import appended_factor
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.solvers.factorisation import exact_path_fits, factorised
from gp_rangeformer.solvers.predictive_means import mean_beside_probes, mean_by_factor, mean_solve
from gp_rangeformer.system.answers import Prepared, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.torch_modes import no_autocast

# n^3 up to which a factorisation answers a model's first prediction: n = 4,000, where it takes half a second (float64),
# and a preconditioner with neighbours as long.
_FACTORISED = 4000**3
# n^3 up to which a factorisation in the dtype of K may end what iterations beside probes do not: at n = 8,000 it takes
# as long as 20 of them, and as much memory as K. Tried first are as many as do where the noise is not small (at an
# optimum: pol, protein and elevators; kin40k takes 44).
_ENDED_BY_A_FACTOR, _TRIED = 10_000**3, 10
_BY_A_FACTOR = "refined by one factorisation, which costs less than the iterations that would be left"
_BY_APPENDING = "refined by the factorisation of the model before, to which its new rows were appended"
# Deviations of the noise that rounding may move means by, from which on a note says so and K(test, train) is float64.
ROUNDED = 0.01


_fitted: weakref.WeakKeyDictionary[DefaultPredictionStrategy, FittedModel] = weakref.WeakKeyDictionary()
_before: weakref.WeakKeyDictionary[DefaultPredictionStrategy, FittedModel] = weakref.WeakKeyDictionary()
_lock = threading.RLock()  # of both: threads predict at the same time


def fitted_model(strategy: Any) -> FittedModel | None:
    """Of a strategy's training points, solved for its targets once, with a report; again where parameters, data or the
    solver have changed since. None where GPyTorch must answer.

    :raises RuntimeError, NanError: as :func:`~gp_rangeformer.plugin.eligibility.check_rhs`.
    """
    operator = strategy.lik_train_train_covar
    if type(operator) is not AddedDiagLinearOperator or type(operator._linear_op) is not LazyEvaluatedKernelTensor:
        return None
    with torch.no_grad(), no_autocast():
        with _lock:
            known = _fitted.get(strategy)
        state = state_of(strategy)
        if known is not None and known.solver == settings.solver.value() and same(state, known.state):
            return known
        found = _fit(strategy, state)
    if found is not None:
        with _lock:
            _fitted[strategy] = found
            _before.pop(strategy, None)
        keep_at_most(settings.memory_limit.value())
    return found


def continues(strategy: Any, known: FittedModel) -> None:
    """A strategy's points are those of a fitted model, and more."""
    with _lock:
        _before[strategy] = known
    keep_at_most(settings.memory_limit.value())


def fitted_bytes() -> int:
    """Bytes that are kept for predictions of all models."""
    with _lock:
        models = {id(known): known for kept in (_fitted, _before) for known in kept.values()}
        return sum(known.nbytes for known in models.values())


def keep_at_most(limit: int) -> None:
    """Bytes, with what training remembers: what was solved for other models goes first, and of each its factor."""
    with _lock:
        over = remembered_bytes() + fitted_bytes() - limit
        if over <= 0:
            return
        holders = Counter(id(known) for kept in (_fitted, _before) for known in kept.values())
        for kept in (_fitted, _before):
            for strategy, known in list(kept.items()):
                if over > 0:
                    whole = known.nbytes
                    known.factor = known.rounded = None
                    over -= whole - known.nbytes
                if over > 0:
                    del kept[strategy]
                    holders[id(known)] -= 1
                    over -= 0 if holders[id(known)] else known.nbytes


def forget_fitted() -> None:
    """What was solved for predictions."""
    with _lock:
        _fitted.clear()
        _before.clear()


def _fit(strategy: Any, state: tuple[Tensor, ...]) -> FittedModel | None:
    targets = strategy.train_labels
    system = unevaluated(observed(strategy), targets.shape, anew=True)  # GPyTorch may have predicted before
    if system is None or not isinstance(system.fused, FusedKernel):
        return None
    rhs = (targets - strategy.train_prior_dist.loc).unsqueeze(-1)
    if rhs.shape != (system.fused.n, 1) or rhs.dtype != system.noise.dtype:
        return None
    check_rhs(system, rhs)
    call = Call("solve", system, 1)
    linear_system = symmetric_system(call, system, system.kernel, system.noise, system.fused)
    before = _model_before(strategy)
    factor = known = start = None
    if before is not None:
        if _appended_to(before, system.fused, state):
            factor, known = before.factor, before.rounded
        if _few_more(len(rhs), before.n):
            start = before.start(len(rhs))
    prepared, reason = _prepared(linear_system, memory_of(system.owners, system.kernel, 0), factor)
    solution, rounded = _solved(prepared, rhs, start, known)
    if rounded is not None:
        call.note(_BY_A_FACTOR if known is None else _BY_APPENDING)
        if not linear_system.held_dense and known is None:
            call.note("the factorisation formed K as a dense matrix")
    account_solve(call, linear_system, prepared, solution, reason)
    moved = _moved_by_rounding(linear_system, solution.value)
    if moved > ROUNDED:
        call.note(f"float32 entries of K may move means by {moved:.1g} of the noise's deviation: float64 helps")
    # While K is there: what variances need of solves that were made beside the targets'.
    pairs = None
    if isinstance(prepared, CertifiedPrepared) and rounded is None and len(prepared.solved_probes) >= PAIRS:
        pairs = prepared.inverse_pairs(PAIRS * prepared.solver.num_probes)
    call.publish()
    return FittedModel(
        _of_its_own(system.fused),
        system.noise.detach().clone(),
        settings.solver.value(),
        solution.value.double(),
        None if prepared.exact is None else prepared.exact.factor,
        preconditioners_of(prepared),
        tuple(tensor.clone() for tensor in state),
        moved,
        0.0 if prepared.exact is None else prepared.exact.jitter,
        rounded,
        pairs,
    )


def _model_before(strategy: Any) -> FittedModel | None:
    """What may be continued: nothing where the same call is to give the same bits, whatever came before."""
    if settings.deterministic.on():
        return None
    with _lock:
        return _before.get(strategy)


def _prepared(
    system: LinearSystem, memory: Memory, factor: Float[Tensor, "k k"] | None
) -> tuple[Prepared, Reason | None]:
    """For the targets, and where a factorisation takes less than a preconditioner for what variances will ask, too.

    :param factor: of the first k rows and columns, where there is one.
    """
    solver = settings.solver.value()
    if factor is not None and (system.size**3 <= _FACTORISED or _few_more(system.size, len(factor))):
        appended = Exact(solver.prediction_tolerance).append(system, factor)
        if appended is not None:
            return appended, Reason.EXACT_APPENDED
    small = isinstance(solver, Certified) and solver.variances != "estimated" and system.size**3 <= _FACTORISED
    if small and system.size >= settings.min_size.value_on(system.device) and exact_path_fits(system, 1):
        return Exact(solver.prediction_tolerance).prepare(system), Reason.EXACT_MANY_COLUMNS
    return prepare_solve(system, memory, 1)


def _few_more(n: int, k: int) -> bool:
    """Whether what is known of k points is most of what there is to know of n: else a preconditioner may take less than
    appending to a factor, and fewer iterations from zero than from the solution for the k."""
    return 4 * (n - k) <= k


def _solved(
    prepared: Prepared,
    rhs: Float[Tensor, "n 1"],
    start: Float64[Tensor, "n 1"] | None,
    known: Float[Tensor, "k k"] | None,
) -> tuple[Solution, Float[Tensor, "n n"] | None]:
    """A^-1 rhs; and a factor in the dtype of K, where that ended what iterations did not.

    :param known: such a factor of the first k rows and columns, where there is one.
    """
    system = prepared.system
    if (
        isinstance(prepared, CertifiedPrepared)
        and prepared.vecchia is not None
        and system.size**3 <= _ENDED_BY_A_FACTOR
    ):
        fits = exact_path_fits(system, 1)
        factor = appended_factor(system, known) if known is not None and fits else None
        if factor is None:
            found = mean_beside_probes(prepared, rhs, start, _TRIED)
            if found is not None:
                return found, None
            factor = factorised(system, system.dtype) if fits else None
        found = None if factor is None else mean_by_factor(prepared, rhs, start, factor)
        if found is not None:
            return found, factor
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


def _of_its_own(fused: FusedKernel) -> FusedKernel:
    """Without a graph, of numbers that nobody else changes."""
    arguments = tuple(argument.detach().clone() for argument in fused.arguments)
    parameters = tuple(parameter.detach().clone() for parameter in fused.parameters)
    return FusedKernel.of_arguments(fused.expression, arguments, fused.n, fused.dtype, parameters=parameters)


def _appended_to(before: FittedModel, fused: FusedKernel, state: tuple[Tensor, ...]) -> bool:
    """Whether the matrices K and D of a state begin with those of a model before."""
    if before.jitter:
        return False
    (noise, x, *_), (known_noise, known_x, *_) = state[-4:], before.state[-4:]
    now = (*fused.parameters, noise[: before.n], x[: before.n])
    alike = fused.dtype == before.fused.dtype and fused.expression == before.fused.expression
    return alike and same(now, (*before.fused.parameters, known_noise, known_x))
