"""The only file that touches GPyTorch's and linear_operator's classes: hooks, eligibility, fallback, memory keys.

Three methods of ``AddedDiagLinearOperator`` (which it inherits) are the entrance: ``inv_quad_logdet``, ``solve`` and
``root_inv_decomposition``. Two more hooks feed them: ``MultivariateNormal.log_prob`` (with fast log_prob off,
BoTorch's default, it would bypass ``inv_quad_logdet``), and ``LazyEvaluatedKernelTensor.evaluate_kernel`` (which marks
the evaluated matrix with its kernel module, so that memories of different models stay apart). With the flag off every hook is a
straight call of the original.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import pickle
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from gpytorch import settings as gpytorch_settings
from gpytorch.beta_features import checkpoint_kernel
from gpytorch.distributions import MultivariateNormal
from gpytorch.lazy import LazyEvaluatedKernelTensor
from linear_operator import settings as host_settings
from linear_operator.operators import (
    AddedDiagLinearOperator,
    BatchRepeatLinearOperator,
    ConstantMulLinearOperator,
    DenseLinearOperator,
    DiagLinearOperator,
    LinearOperator,
    MatmulLinearOperator,
    MulLinearOperator,
    RootLinearOperator,
    SumLinearOperator,
    TriangularLinearOperator,
)
from linear_operator.operators.low_rank_root_linear_operator import LowRankRootLinearOperator
from linear_operator.operators.psd_sum_linear_operator import PsdSumLinearOperator
from linear_operator.utils.errors import NanError
from linear_operator.utils.memoize import _is_in_cache, add_to_cache, get_from_cache
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.functions import InvQuadLogDet, Solve
from gp_rangeformer.ranges.memory import Memory, MemoryStore
from gp_rangeformer.report import SolveReport, publish
from gp_rangeformer.solvers.base import Evaluation, InverseRoot, LinearSystem, LogDet, Solution
from gp_rangeformer.solvers.cholesky import ExactPrepared, ExactSolver
from gp_rangeformer.solvers.rangeformer import RangeFormerPrepared, RangeFormerSolver
from gp_rangeformer.solvers.reason import Reason


class IncompatibleHostError(ImportError):
    """The installed gpytorch / linear_operator do not have the methods that the flag reroutes."""


# --------------------------------------------------------------------------------------------------------------------
# Memory: one per kernel module, size, dtype, device and batch element

_memories = MemoryStore()
_OWNER = "_gp_rangeformer_owner"
_NO_KEYWORDS = pickle.dumps({})  # how linear_operator's memoisation spells a call without keyword arguments
_owner_numbers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_next_owner = itertools.count(1)


def clear_memory() -> None:
    """Forget the solutions and landmarks of every model. The next step starts cold; no answer changes."""
    _memories.clear()


def memory_bytes() -> int:
    """Bytes that all memories hold now; bounded by ``settings.memory_limit`` after every call."""
    return _memories.nbytes


def _owner(kernel: torch.nn.Module) -> int:
    number = _owner_numbers.get(kernel)
    if number is None:
        number = _owner_numbers[kernel] = next(_next_owner)
        weakref.finalize(kernel, _memories.discard, number)
    return number


def _mark(operator: LinearOperator, kernel: torch.nn.Module) -> None:
    """An attribute of the tensor survives what the operator does not: rebuilding from the representation tree."""
    owner = _owner(kernel)
    for tensor in operator.representation():
        setattr(tensor, _OWNER, owner)


# --------------------------------------------------------------------------------------------------------------------
# Eligibility

# Summands and factors that a dense kernel matrix may be combined with; structure beyond these is left to the host.
_LOW_RANK = (RootLinearOperator, LowRankRootLinearOperator, MatmulLinearOperator)


@dataclass(frozen=True)
class _Eligible:
    """A = K + D as tensors in the autograd graph: kernel (*batch) n n, noise (*batch) n; owners of K's parts."""

    kernel: Tensor
    noise: Tensor
    owners: tuple[int, ...]


def _evaluated(operator: LinearOperator) -> LinearOperator:
    return operator.evaluate_kernel() if isinstance(operator, LazyEvaluatedKernelTensor) else operator


def _is_dense(operator: LinearOperator) -> bool:
    """Whether ``operator`` is a dense matrix, or a sum or product that a dense matrix leaves without structure."""
    operator = _evaluated(operator)
    kind = type(operator)
    if kind is DenseLinearOperator:
        return True
    if kind is ConstantMulLinearOperator:
        return _is_dense(operator.base_linear_op)
    if kind in (SumLinearOperator, PsdSumLinearOperator):
        parts = operator.linear_ops
    elif kind is MulLinearOperator:
        parts = [operator.left_linear_op, operator.right_linear_op]
    else:
        return False
    dense = [_is_dense(part) for part in parts]
    plain = [type(_evaluated(part)) in _LOW_RANK or isinstance(part, DiagLinearOperator) for part in parts]
    # GPyTorch itself gives a product of kernels as the product of their roots: only dense matters here
    return any(dense) and all(d or p for d, p in zip(dense, plain, strict=True))


def _owners(operator: LinearOperator) -> tuple[int, ...]:
    marks = (getattr(tensor, _OWNER, None) for tensor in operator.representation())
    return tuple(mark for mark in marks if mark is not None)


def _eligible(operator: AddedDiagLinearOperator) -> _Eligible | Reason:
    """The system as tensors, or why it stays with the host. Cheap tests first; the kernel is evaluated last."""
    if type(operator) is not AddedDiagLinearOperator:
        return Reason.OTHER_OPERATOR
    shape = operator.shape
    if shape[-1] != shape[-2] or 0 in shape:
        return Reason.SHAPE
    if shape[-1] < settings.exact_size.value():
        return Reason.TOO_SMALL
    if operator.dtype not in (torch.float32, torch.float64):
        return Reason.UNSUPPORTED_DTYPE
    if host_settings.trace_mode.on():
        return Reason.TRACING
    if checkpoint_kernel.value():
        return Reason.CHECKPOINTED_KERNEL
    if gpytorch_settings.observation_nan_policy.value() != "ignore":
        return Reason.NAN_POLICY
    if not _is_dense(operator._linear_op):
        return Reason.STRUCTURED_KERNEL
    kernel_operator = _evaluated(operator._linear_op)
    kernel = kernel_operator.to_dense()
    noise = operator._diag_tensor._diagonal()
    if kernel.dtype != operator.dtype or noise.dtype != kernel.dtype:
        return Reason.UNSUPPORTED_DTYPE
    if noise.device != kernel.device:
        raise RuntimeError(
            f"the kernel matrix is on {kernel.device}, the noise on {noise.device}: move model and likelihood together"
        )
    batch_shape = operator.batch_shape
    n = shape[-1]
    return _Eligible(kernel.expand(*batch_shape, n, n), noise.expand(*batch_shape, n), _owners(kernel_operator))


def _check_rhs(system: _Eligible, rhs: Tensor) -> None:
    if rhs.device != system.kernel.device:
        raise RuntimeError(
            f"the right-hand side is on {rhs.device}, the kernel matrix on {system.kernel.device}: "
            "move the targets with .to(device)"
        )
    if not bool(rhs.sum().isfinite()):
        raise NanError(
            "the right-hand side (targets minus mean) holds NaN or infinity: clean the targets, or use "
            "gpytorch.settings.observation_nan_policy('mask')"
        )


_LINE_SEARCHES = ("torch.optim.lbfgs", "scipy.optimize")


def _inside_line_search() -> bool:
    """Whether a line search is on the call stack: its objective is evaluated from inside its step, nobody else's is."""
    frame = inspect.currentframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_LINE_SEARCHES):
            return True
        frame = frame.f_back
    return False


def _called_by_covar_cache() -> bool:
    """Whether GPyTorch's predictive-variance cache asks: the one caller that uses only S S' of an inverse root S.

    Others (fantasies) combine the inverse root with the root and need the triangular pair.
    """
    frame = inspect.currentframe()
    for _ in range(6):
        if frame is None:
            return False
        if frame.f_code.co_name == "covar_cache" and str(frame.f_globals.get("__name__")).startswith("gpytorch.models"):
            return gpytorch_settings.detach_test_caches.on()
        frame = frame.f_back
    return False


# --------------------------------------------------------------------------------------------------------------------
# Choosing and preparing a solver


def _rangeformer_solver(tolerance: float) -> RangeFormerSolver:
    return RangeFormerSolver(
        tolerance=tolerance,
        rank=settings.rank.value(),
        num_probes=settings.num_probes.value(),
        num_logdet_probes=min(settings.num_logdet_probes.value(), settings.num_probes.value()),
        history=settings.history.value(),
        predictor=settings.predictor.value(),
        max_passes=settings.max_passes.value(),
        seed=settings.seed.value(),
        landmarks=settings.landmarks.value(),
    )


def _memory(system: _Eligible, element: int) -> Memory:
    kernel = system.kernel
    return _memories.get((system.owners, kernel.shape[-1], kernel.dtype, str(kernel.device), element))


def _elements(system: _Eligible) -> list[tuple[Tensor, Tensor]]:
    """(kernel n n, noise n) of every batch element. unbind, not indexing: its backward stacks once."""
    if system.kernel.dim() == 2:
        return [(system.kernel, system.noise)]
    n = system.kernel.shape[-1]
    return list(zip(system.kernel.reshape(-1, n, n).unbind(0), system.noise.reshape(-1, n).unbind(0), strict=True))


AnyPrepared = ExactPrepared | RangeFormerPrepared


class _Call:
    """Collects what the elements of one batch did, and publishes one report."""

    def __init__(self, operation: str, system: _Eligible, columns: int) -> None:
        self.started = time.perf_counter()
        self.published = False
        kernel = system.kernel
        self.report = SolveReport(
            operation,
            solver="rangeformer",
            reason=Reason.CONVERGED,
            n=kernel.shape[-1],
            batch_shape=tuple(kernel.shape[:-2]),
            dtype=str(kernel.dtype).removeprefix("torch."),
            device=str(kernel.device),
            columns=columns,
        )

    def add(self, linear_system: LinearSystem, prepared: AnyPrepared, reason: Reason, **changes: object) -> None:
        """Account for one batch element; ``changes`` are fields of the report."""
        report = self.report
        notes = report.notes
        exact = prepared if isinstance(prepared, ExactPrepared) else prepared.exact
        if exact is not None:
            notes = tuple(dict.fromkeys((*notes, *exact.notes())))
        passes, columns_multiplied = linear_system.take_counts()
        self.report = replace(
            report,
            solver="rangeformer" if exact is None and report.solver == "rangeformer" else "exact",
            reason=reason if report.reason is Reason.CONVERGED else report.reason,
            passes=report.passes + passes,
            columns_multiplied=report.columns_multiplied + columns_multiplied,
            notes=notes,
            **changes,  # type: ignore[arg-type]
        )

    def publish(self) -> None:
        self.published = True
        publish(replace(self.report, seconds=time.perf_counter() - self.started))
        _memories.trim(settings.memory_limit.value())


def _decline(operation: str, operator: LinearOperator, reason: Reason, columns: int = 0) -> None:
    publish(
        SolveReport(
            operation,
            solver="gpytorch",
            reason=reason,
            n=operator.shape[-1],
            batch_shape=tuple(operator.batch_shape),
            dtype=str(operator.dtype).removeprefix("torch."),
            device=str(operator.device),
            columns=columns,
        )
    )


# --------------------------------------------------------------------------------------------------------------------
# The three hooks


def _inv_quad_logdet(
    self: AddedDiagLinearOperator,
    inv_quad_rhs: Tensor | None = None,
    logdet: bool | None = False,
    reduce_inv_quad: bool | None = True,
) -> tuple[Tensor | None, Tensor | None]:
    original = LinearOperator.inv_quad_logdet
    if settings.rangeformer.off():
        return original(self, inv_quad_rhs, logdet, reduce_inv_quad)
    system = _eligible(self)
    if not isinstance(system, Reason) and not _shapes_match(self, inv_quad_rhs):
        system = Reason.SHAPE
    if isinstance(system, Reason):
        _decline("inv_quad_logdet", self, system)
        with _user_log_prob():
            return original(self, inv_quad_rhs, logdet, reduce_inv_quad)
    if inv_quad_rhs is None and not logdet:
        raise RuntimeError("Either `inv_quad_rhs` or `logdet` must be specifed.")

    n = self.shape[-1]
    with_logdet = bool(logdet)
    vector = inv_quad_rhs is not None and inv_quad_rhs.dim() == 1
    rhs = system.kernel.new_zeros(*self.batch_shape, n, 0) if inv_quad_rhs is None else inv_quad_rhs
    rhs = rhs.unsqueeze(-1) if vector else rhs
    if inv_quad_rhs is not None:
        _check_rhs(system, rhs)
    call = _Call("inv_quad_logdet", system, rhs.shape[-1])
    exact_reason = _exact_training_reason(n)
    inv_quads, logdets = [], []
    for index, ((kernel, noise), b) in enumerate(
        zip(_elements(system), rhs.reshape(-1, n, rhs.shape[-1]).unbind(0), strict=True)
    ):
        linear_system = LinearSystem(kernel.detach(), noise.detach())
        memory = _memory(system, index)

        def evaluate(linear_system=linear_system, memory=memory, b=b) -> Evaluation:
            tolerance = settings.tolerance.value()
            solver = ExactSolver(tolerance) if exact_reason else _rangeformer_solver(tolerance)
            prepared = solver.prepare(linear_system, memory)
            evaluation = prepared.evaluate(b.detach(), with_logdet)
            _account_training(call, linear_system, prepared, evaluation, exact_reason)
            return evaluation

        inv_quad, log_determinant = InvQuadLogDet.apply(kernel, noise, b, evaluate)
        inv_quads.append(inv_quad)
        logdets.append(log_determinant)
    call.publish()
    batch_shape = self.batch_shape
    inv_quad = torch.stack(inv_quads).reshape(*batch_shape, rhs.shape[-1])
    log_determinant = torch.stack(logdets).reshape(batch_shape)
    if inv_quad_rhs is None:
        inv_quad = inv_quad.new_zeros(batch_shape)
    elif reduce_inv_quad:
        inv_quad = inv_quad.sum(-1)
    return inv_quad, log_determinant if with_logdet else log_determinant.new_zeros([])


def _solve(self: AddedDiagLinearOperator, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
    original = LinearOperator.solve
    if settings.rangeformer.off():
        return original(self, right_tensor, left_tensor)
    system = _eligible(self)
    n = self.shape[-1]
    if not isinstance(system, Reason) and (
        right_tensor.shape[-1 if right_tensor.dim() == 1 else -2] != n
        or right_tensor.numel() == 0
        or right_tensor.dtype != self.dtype
    ):
        system = Reason.SHAPE if right_tensor.dtype == self.dtype else Reason.UNSUPPORTED_DTYPE
    if isinstance(system, Reason):
        _decline("solve", self, system, right_tensor.shape[-1])
        return original(self, right_tensor, left_tensor)

    _check_rhs(system, right_tensor)
    vector = right_tensor.dim() == 1
    rhs = right_tensor.unsqueeze(-1) if vector else right_tensor
    batch_shape = torch.broadcast_shapes(self.batch_shape, rhs.shape[:-2])
    if batch_shape != self.batch_shape:
        expanded_kernel = system.kernel.expand(*batch_shape, n, n)
        system = replace(system, kernel=expanded_kernel, noise=system.noise.expand(*batch_shape, n))
    rhs = rhs.expand(*batch_shape, *rhs.shape[-2:])
    call = _Call("solve", system, rhs.shape[-1])
    solutions = []
    for index, ((kernel, noise), b) in enumerate(
        zip(_elements(system), rhs.reshape(-1, n, rhs.shape[-1]).unbind(0), strict=True)
    ):
        linear_system = LinearSystem(kernel.detach(), noise.detach())
        prepared, exact_reason = _prepare_solve(linear_system, _memory(system, index), rhs.shape[-1])

        def solve(columns: Tensor, linear_system=linear_system, prepared=prepared, reason=exact_reason) -> Tensor:
            solution = prepared.solve(columns.detach())
            # The backward pass solves again, after this call's report has been published.
            ours = call if not call.published else _Call("solve", system, columns.shape[-1])
            _account_solve(ours, linear_system, prepared, solution, reason)
            if call.published:
                ours.publish()
            return solution.value

        solutions.append(Solve.apply(kernel, noise, b, solve))
    call.publish()
    result = torch.stack(solutions).reshape(*batch_shape, n, rhs.shape[-1])
    result = result.squeeze(-1) if vector else result
    return result if left_tensor is None else left_tensor @ result


def _root_inv_decomposition(
    self: AddedDiagLinearOperator,
    initial_vectors: Tensor | None = None,
    test_vectors: Tensor | None = None,
    method: str | None = None,
) -> LinearOperator:
    name, arguments = "root_inv_decomposition", (initial_vectors, test_vectors, method)
    original = LinearOperator.root_inv_decomposition
    asked = any(argument is not None for argument in arguments)
    if settings.rangeformer.off() or (not asked and _is_in_cache(self, name, kwargs_pkl=_NO_KEYWORDS)):
        return original(self, *arguments) if asked else original(self)
    system = Reason.CUSTOM_ROOT if asked else _eligible(self)
    for_variance = _called_by_covar_cache()
    if not isinstance(system, Reason) and torch.is_grad_enabled() and not for_variance:
        needs_gradient = system.kernel.requires_grad or system.noise.requires_grad
        system = Reason.ROOT_GRADIENT if needs_gradient else system
    if isinstance(system, Reason):
        _decline(name, self, system)
        return original(self, *arguments) if asked else original(self)

    call = _Call(name, system, 0)
    n = self.shape[-1]
    roots, factors = [], []
    with torch.no_grad():
        for index, (kernel, noise) in enumerate(_elements(system)):
            linear_system = LinearSystem(kernel.detach(), noise.detach())
            tolerance = settings.prediction_tolerance.value()
            small = n < settings.min_size.value()
            # A batch mixes badly: roots of different widths cannot be stacked.
            exact = small or not for_variance or self.batch_shape.numel() > 1
            solver = ExactSolver(tolerance) if exact else _rangeformer_solver(settings.tolerance.value())
            prepared = solver.prepare(linear_system, _memory(system, index))
            root: InverseRoot = prepared.inv_root()
            reason = (Reason.EXACT_SMALL if small else Reason.EXACT_ROOT) if exact else root.reason
            call.add(linear_system, prepared, reason, variance_error=max(call.report.variance_error or 0, root.error))
            roots.append(root.value)
            if isinstance(prepared, ExactPrepared):
                factors.append(prepared.factor.to(kernel.dtype))
    call.publish()
    stacked = torch.stack(roots).reshape(*self.batch_shape, *roots[0].shape)
    if stacked.shape[-1] < n:
        # Not cached on the operator: a later fantasy needs the triangular pair below.
        return RootLinearOperator(stacked)
    result = RootLinearOperator(TriangularLinearOperator(stacked, upper=True))
    add_to_cache(self, name, result)
    if factors:
        factor = torch.stack(factors).reshape(*self.batch_shape, n, n)
        add_to_cache(self, "root_decomposition", RootLinearOperator(TriangularLinearOperator(factor)))
    return get_from_cache(self, name)


def _shapes_match(operator: LinearOperator, rhs: Tensor | None) -> bool:
    """The host's own condition on the right-hand side of inv_quad_logdet."""
    if rhs is None:
        return True
    if rhs.dtype != operator.dtype or rhs.numel() == 0:
        return False
    if operator.dim() == 2 and rhs.dim() == 1:
        return operator.shape[-1] == rhs.numel()
    return rhs.dim() == operator.dim() and operator.shape[:-1] == rhs.shape[:-1]


def _exact_training_reason(n: int) -> Reason | None:
    if n < settings.min_size.value():
        return Reason.EXACT_SMALL
    if settings.logdet.value() == "exact":
        return Reason.EXACT_ASKED
    if settings.exact_line_search.on() and _inside_line_search():
        return Reason.EXACT_LINE_SEARCH
    return None


# One Cholesky costs about as much as twenty passes with n / 32 columns (measured at n = 4000, float32).
_EXACT_COLUMNS = 32


def _prepare_solve(system: LinearSystem, memory: Memory, columns: int) -> tuple[AnyPrepared, Reason | None]:
    tolerance = settings.prediction_tolerance.value()
    if system.size < settings.min_size.value():
        reason = Reason.EXACT_SMALL
    elif columns > system.size // _EXACT_COLUMNS:
        reason = Reason.EXACT_MANY_COLUMNS
    else:
        return _rangeformer_solver(tolerance).prepare(system, memory), None
    return ExactSolver(tolerance).prepare(system), reason


def _account_training(
    call: _Call, system: LinearSystem, prepared: AnyPrepared, evaluation: Evaluation, exact_reason: Reason | None
) -> None:
    report, logdet = call.report, evaluation.logdet
    changes: dict[str, object] = {
        "iterations": report.iterations + evaluation.solution.iterations,
        "residual": max(report.residual, _largest(evaluation.solution.residual)),
    }
    if logdet is not None:
        changes |= _likelihood(report, evaluation, logdet)
    reason = evaluation.solution.reason
    if reason is Reason.CONVERGED:
        reason = evaluation.fallback_reason or exact_reason or reason
    call.add(system, prepared, reason, **changes)


def _likelihood(report: SolveReport, evaluation: Evaluation, logdet: LogDet) -> dict[str, object]:
    """Add one batch element's log determinant and, for one right-hand side, its log marginal likelihood."""
    statistical = logdet.statistical or logdet.rigorous if report.logdet_statistical or logdet.statistical else None
    before = report.logdet_statistical or report.logdet_interval
    changes: dict[str, object] = {
        "logdet": logdet.value + (report.logdet or 0.0),
        "logdet_interval": logdet.rigorous + report.logdet_interval if report.logdet_interval else logdet.rigorous,
        "logdet_statistical": statistical + before if statistical and before else statistical,
        "logdet_level": logdet.level or report.logdet_level,
    }
    if report.columns == 1:
        constant = -0.5 * report.n * math.log(2 * math.pi)
        quadratic = evaluation.solution.inv_quad[0]
        rigorous = (quadratic + logdet.rigorous).scaled(-0.5).shifted(constant)
        value = -0.5 * (float(evaluation.inv_quad[0]) + logdet.value) + constant
        changes["mll"] = value + (report.mll or 0.0)
        changes["mll_interval"] = rigorous + report.mll_interval if report.mll_interval else rigorous
        if statistical is not None:
            likely = (quadratic + (logdet.statistical or logdet.rigorous)).scaled(-0.5).shifted(constant)
            earlier = report.mll_statistical or report.mll_interval
            changes["mll_statistical"] = likely + earlier if earlier else likely
    return changes


def _account_solve(
    call: _Call, system: LinearSystem, prepared: AnyPrepared, solution: Solution, exact_reason: Reason | None
) -> None:
    report = call.report
    reason = solution.reason if exact_reason is None or not solution.converged else exact_reason
    call.add(
        system,
        prepared,
        reason,
        iterations=report.iterations + solution.iterations,
        residual=max(report.residual, _largest(solution.residual)),
    )


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


# --------------------------------------------------------------------------------------------------------------------
# The two hooks that feed them


_original_log_prob = MultivariateNormal.log_prob
_original_evaluate_kernel = LazyEvaluatedKernelTensor.evaluate_kernel
_forced_log_prob = 0


@contextlib.contextmanager
def _force_log_prob() -> Iterator[None]:
    """Fast log_prob on, remembering that the user has it off."""
    global _forced_log_prob
    with host_settings._fast_log_prob(True):
        _forced_log_prob += 1
        try:
            yield
        finally:
            _forced_log_prob -= 1


def _user_log_prob() -> contextlib.AbstractContextManager[object]:
    """The user's own choice of fast log_prob, for operators that are declined."""
    return host_settings._fast_log_prob(False) if _forced_log_prob else contextlib.nullcontext()


def _log_prob(self: MultivariateNormal, value: Tensor) -> Tensor:
    """GPyTorch's log_prob; where the user has fast log_prob off, eligible covariances still meet inv_quad_logdet.

    Switching fast log_prob on for the whole context would send every *other* operator from Cholesky to CG.
    """
    if settings.rangeformer.off() or host_settings._fast_log_prob.on() or not self.islazy:
        return _original_log_prob(self, value)
    covariance = self.lazy_covariance_matrix
    if isinstance(covariance, BatchRepeatLinearOperator):
        covariance = covariance.base_linear_op
    if type(covariance) is not AddedDiagLinearOperator or isinstance(_eligible(covariance), Reason):
        return _original_log_prob(self, value)
    with _force_log_prob():
        return _original_log_prob(self, value)


def _evaluate_kernel(self: LazyEvaluatedKernelTensor) -> LinearOperator:
    result = _original_evaluate_kernel(self)
    if settings.rangeformer.on() and not checkpoint_kernel.value():
        _mark(result, self.kernel)
    return result


# --------------------------------------------------------------------------------------------------------------------
# Installation

_EXPECTED_PARAMETERS = {
    "inv_quad_logdet": ["self", "inv_quad_rhs", "logdet", "reduce_inv_quad"],
    "solve": ["self", "right_tensor", "left_tensor"],
    "root_inv_decomposition": ["self", "initial_vectors", "test_vectors", "method"],
}
_HOOKS = {"inv_quad_logdet": _inv_quad_logdet, "solve": _solve, "root_inv_decomposition": _root_inv_decomposition}


def check_host() -> None:
    """Compare the host's methods with what the hooks were written for.

    :raises IncompatibleHostError: naming the method and the tested versions.
    """
    for name, expected in _EXPECTED_PARAMETERS.items():
        own = AddedDiagLinearOperator.__dict__.get(name)
        if own is not None and own is not _HOOKS[name]:
            _refuse_host(f"AddedDiagLinearOperator now defines its own {name}")
        found = list(inspect.signature(getattr(LinearOperator, name)).parameters)
        if found != expected:
            _refuse_host(f"LinearOperator.{name} takes {found}, expected {expected}")
    if list(inspect.signature(_original_log_prob).parameters) != ["self", "value"]:
        _refuse_host("MultivariateNormal.log_prob has another signature")
    probe = DenseLinearOperator(torch.eye(1)).add_diagonal(torch.ones(1))
    if not (hasattr(probe, "_linear_op") and hasattr(probe, "_diag_tensor")):
        _refuse_host("AddedDiagLinearOperator no longer keeps its parts as _linear_op and _diag_tensor")


def _refuse_host(difference: str) -> None:
    raise IncompatibleHostError(
        f"gp_rangeformer cannot hook into gpytorch {version('gpytorch')} with linear_operator "
        f"{version('linear_operator')}: {difference}. Tested with gpytorch 1.15.2 and linear_operator 0.6.1 "
        "(pip install gpytorch==1.15.2 linear-operator==0.6.1)"
    )


def install() -> None:
    """Put the hooks in place, once; with the flag off they call the host's methods unchanged."""
    check_host()
    for name, hook in _HOOKS.items():
        setattr(AddedDiagLinearOperator, name, hook)
    MultivariateNormal.log_prob = _log_prob
    LazyEvaluatedKernelTensor.evaluate_kernel = _evaluate_kernel
