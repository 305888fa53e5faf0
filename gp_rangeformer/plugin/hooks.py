"""The three methods of ``AddedDiagLinearOperator`` that the flag reroutes; with the flag off they call the host's."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from typing import Any

import torch
from linear_operator.operators import (
    AddedDiagLinearOperator,
    LinearOperator,
    RootLinearOperator,
    TriangularLinearOperator,
)
from linear_operator.settings import fast_computations, max_cholesky_size
from linear_operator.utils.memoize import _is_in_cache, add_to_cache, get_from_cache
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.allocation.free_memory import because
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin import autograd
from gp_rangeformer.plugin.eligibility import (
    EligibleSystem,
    called_by_covar_cache,
    called_by_predictive_covariance,
    check_rhs,
    decline_prediction_reason,
    decline_reason,
    eligible,
    inside_line_search,
    shapes_match,
)
from gp_rangeformer.plugin.gradient_error import GradientCheck
from gp_rangeformer.plugin.hyperparameters import FusedHyperparameters
from gp_rangeformer.plugin.owners import memory_of
from gp_rangeformer.plugin.reports import (
    Call,
    account_batch,
    account_solve,
    account_training,
    report_declined,
)
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.exact import Exact, ExactPrepared, exact_path_fits
from gp_rangeformer.solvers.exact_batch import evaluate_batch
from gp_rangeformer.solvers.gradient_weight import GradientWeight
from gp_rangeformer.solvers.prediction import covariance_solve, mean_solve
from gp_rangeformer.system.answers import Evaluation, InverseRoot, Prepared
from gp_rangeformer.system.kernel_matrix import KernelMatrix
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.symmetry import last_bits_asymmetry, symmetric_part
from gp_rangeformer.torch_modes import no_autocast

_NO_KEYWORDS = pickle.dumps({})  # how linear_operator's memoisation spells a call without keyword arguments


def inv_quad_logdet(
    self: AddedDiagLinearOperator,
    inv_quad_rhs: Tensor | None = None,
    logdet: bool | None = False,
    reduce_inv_quad: bool | None = True,
) -> tuple[Tensor | None, Tensor | None]:
    original = LinearOperator.inv_quad_logdet
    if settings.rangeformer.off():
        return original(self, inv_quad_rhs, logdet, reduce_inv_quad)
    with no_autocast():
        system = eligible(self, decline_reason(self))
        if not isinstance(system, Reason) and inv_quad_rhs is not None:
            if inv_quad_rhs.dtype != system.noise.dtype:
                system = Reason.MIXED_DTYPE
            elif not shapes_match(system.kernel.shape, inv_quad_rhs):
                system = Reason.SHAPE
        if not isinstance(system, Reason):
            return _inv_quad_logdet(system, inv_quad_rhs, bool(logdet), bool(reduce_inv_quad))
    report_declined("inv_quad_logdet", self, system, _columns(inv_quad_rhs))
    return original(self, inv_quad_rhs, logdet, reduce_inv_quad)


def _inv_quad_logdet(
    system: EligibleSystem, inv_quad_rhs: Tensor | None, with_logdet: bool, reduce_inv_quad: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Both terms in the host's shapes."""
    if inv_quad_rhs is None and not with_logdet:
        raise RuntimeError("Either `inv_quad_rhs` or `logdet` must be specifed.")
    n, batch_shape = system.kernel.shape[-1], system.kernel.shape[:-2]
    vector = inv_quad_rhs is not None and inv_quad_rhs.dim() == 1
    rhs = system.noise.new_zeros(*batch_shape, n, 0) if inv_quad_rhs is None else inv_quad_rhs
    rhs = rhs.unsqueeze(-1) if vector else rhs
    inv_quad, log_determinant = likelihood_terms(system, rhs, with_logdet)
    # What nobody asked for is None in the host's Cholesky path, and numbers in its other one.
    cholesky = fast_computations.log_prob.off() or n <= (max_cholesky_size.value() or 0)
    if inv_quad_rhs is None:
        inv_quad = None if cholesky else inv_quad.new_zeros(batch_shape)
    elif reduce_inv_quad:
        inv_quad = inv_quad.sum(-1)
    if not with_logdet:
        log_determinant = None if cholesky else log_determinant.new_zeros([])
    return inv_quad, log_determinant


def likelihood_terms(system: EligibleSystem, rhs: Tensor, with_logdet: bool = True) -> tuple[Tensor, Tensor]:
    """rhs_j' A^-1 rhs_j for every column j, (*batch) m, and log|A|, (*batch): differentiable, reported.

    :param rhs: (*batch) n m, perhaps of no columns.
    :raises RuntimeError, NanError, ProcessGroupError: as :func:`~gp_rangeformer.plugin.eligibility.check_rhs`.
    """
    *_, n, m = rhs.shape
    batch_shape, count = system.kernel.shape[:-2], system.count
    call = Call("inv_quad_logdet", system, m)
    exact_reason = _exact_training_reason(system, m)
    columns = rhs.reshape(count, n, m)
    found = None if exact_reason is None else _together(call, system, columns, with_logdet, exact_reason)
    if found is None:
        check_rhs(system, rhs)
        found = _one_by_one(call, system, columns, with_logdet, exact_reason)
    inv_quad, logdet = found
    call.publish()
    return inv_quad.reshape(*batch_shape, m), logdet.reshape(batch_shape)


def _together(
    call: Call, system: EligibleSystem, rhs: Tensor, with_logdet: bool, exact_reason: Reason
) -> tuple[Tensor, Tensor] | None:
    """All elements on the exact path at once, or None where one of them needs to be looked at by itself."""
    if not isinstance(system.kernel, Tensor) or rhs.device != system.kernel.device:
        return None
    count, n, _ = rhs.shape
    kernel, noise = system.kernel.reshape(count, n, n), system.noise.reshape(count, n)
    with torch.no_grad():
        asymmetry = 0.0 if system.fused is not None else last_bits_asymmetry(kernel)
        if asymmetry is None:
            return None
        tolerance = settings.solver.value().tolerance
        evaluation = evaluate_batch(kernel.detach(), noise.detach(), rhs.detach(), tolerance, with_logdet, asymmetry)
    if evaluation is None:
        return None
    account_batch(call, count, evaluation, exact_reason)
    own = system.fused if system.detached else kernel
    assert own is not None
    return autograd.likelihood_terms(own, noise, rhs, evaluation)


def _one_by_one(
    call: Call, system: EligibleSystem, rhs: Tensor, with_logdet: bool, exact_reason: Reason | None
) -> tuple[Tensor, Tensor]:
    inv_quads, logdets = [], []
    parts = zip(system.elements(), system.fused_elements(), rhs.unbind(0), strict=True)
    for index, ((kernel, noise), fused, b) in enumerate(parts):
        linear_system = _symmetric_system(call, system, kernel, noise)
        memory = memory_of(system.owners, system.kernel, index)
        evaluation = _evaluate(call, linear_system, fused, memory, b.detach(), with_logdet, exact_reason)
        own = kernel if isinstance(kernel, Tensor) and not system.detached else fused
        assert own is not None
        inv_quad, log_determinant = autograd.likelihood_terms(own, noise, b, evaluation)
        inv_quads.append(inv_quad)
        logdets.append(log_determinant)
    return torch.stack(inv_quads), torch.stack(logdets)


def _evaluate(
    call: Call,
    system: LinearSystem,
    fused: FusedKernel | None,
    memory: Memory,
    rhs: Tensor,
    with_logdet: bool,
    exact_reason: Reason | None,
) -> Evaluation:
    """Values and the gradient's weight of one batch element, before autograd hears of them."""
    chosen = settings.solver.value()
    solver = Exact(chosen.tolerance) if exact_reason else chosen
    check = _gradient_check(call, system, fused, memory, rhs.shape[1] if with_logdet else 0)
    with torch.no_grad(), because(exact_reason and exact_reason.value):
        prepared = solver.prepare(system, memory)
        if isinstance(prepared, CertifiedPrepared):
            evaluation = prepared.evaluate(rhs, with_logdet, check)
        else:
            evaluation = prepared.evaluate(rhs, with_logdet)
    account_training(call, system, prepared, evaluation, exact_reason)
    if check is not None and isinstance(evaluation.weight, GradientWeight):
        call.add_gradient(check.found)
        if check.asked is None:
            call.note("the gradient is measured for noise and scale alone: GPyTorch evaluates this kernel")
    return evaluation


def _gradient_check(
    call: Call, system: LinearSystem, fused: FusedKernel | None, memory: Memory, columns: int
) -> GradientCheck | None:
    """Of a likelihood whose gradient may be asked for."""
    solver = settings.solver.value()
    tolerance = solver.gradient_tolerance if isinstance(solver, Certified) else math.inf
    if columns != 1 or math.isinf(tolerance) or not torch.is_grad_enabled() or not call.system.requires_grad:
        return None
    # Not through a graph of GPyTorch's or the user's own: their hooks would see weights that are no gradients.
    asked = None if fused is None else FusedHyperparameters(fused)
    return GradientCheck(asked, system.noise, memory, tolerance)


def solve(self: AddedDiagLinearOperator, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
    original = LinearOperator.solve
    if settings.rangeformer.off():
        return original(self, right_tensor, left_tensor)
    with no_autocast():
        system = eligible(self, decline_prediction_reason(self))
        if not isinstance(system, Reason):
            system = _solve_reason(self, right_tensor, left_tensor) or system
        if not isinstance(system, Reason):
            solution = _solve(self, system, right_tensor)
            return solution if left_tensor is None else _left_product(left_tensor, solution, right_tensor)
    report_declined("solve", self, system, _columns(right_tensor))
    return original(self, right_tensor, left_tensor)


def _solve_reason(operator: AddedDiagLinearOperator, right: Tensor, left: Tensor | None) -> Reason | None:
    """Why the host must answer, with its own message where shapes do not match."""
    if right.dtype != operator.dtype or (left is not None and left.dtype != operator.dtype):
        return Reason.MIXED_DTYPE
    rows = right.shape[-1 if right.dim() == 1 else -2] if right.dim() else 0
    if rows != operator.shape[-1] or right.numel() == 0:
        return Reason.SHAPE
    return None


def _left_product(left: Tensor, solution: Tensor, right: Tensor) -> Tensor:
    """left @ A^-1 right; a vector on the right is one column for every element of a batch."""
    if right.dim() == 1:
        return (left @ solution.unsqueeze(-1)).squeeze(-1)
    return left @ solution


def _solve(operator: AddedDiagLinearOperator, system: EligibleSystem, right_tensor: Tensor) -> Tensor:
    check_rhs(system, right_tensor)
    n = operator.shape[-1]
    vector = right_tensor.dim() == 1
    rhs = right_tensor.unsqueeze(-1) if vector else right_tensor
    if operator.dim() == 2 and rhs.dim() > 2:
        # One matrix, a batch of right-hand sides: they become columns, so that the system is prepared once.
        columns = rhs.movedim(-2, 0).reshape(n, -1)
        return _solve(operator, system, columns).reshape(n, *rhs.shape[:-2], rhs.shape[-1]).movedim(0, -2)
    batch_shape = torch.broadcast_shapes(operator.batch_shape, rhs.shape[:-2])
    if batch_shape != operator.batch_shape:
        assert isinstance(system.kernel, Tensor)
        expanded_kernel = system.kernel.expand(*batch_shape, n, n)
        system = replace(system, kernel=expanded_kernel, noise=system.noise.expand(*batch_shape, n))
    rhs = rhs.expand(*batch_shape, *rhs.shape[-2:])
    call = Call("solve", system, rhs.shape[-1])
    answer = covariance_solve if called_by_predictive_covariance() else mean_solve
    solutions = []
    for index, ((kernel, noise), b) in enumerate(
        zip(system.elements(), rhs.reshape(-1, n, rhs.shape[-1]).unbind(0), strict=True)
    ):
        linear_system = _symmetric_system(call, system, kernel, noise)
        with torch.no_grad():
            prepared, exact_reason = _prepare_solve(
                linear_system, memory_of(system.owners, system.kernel, index), rhs.shape[-1]
            )

        def solve_columns(
            columns: Tensor, linear_system=linear_system, prepared=prepared, reason=exact_reason
        ) -> Tensor:
            with torch.no_grad(), no_autocast():
                solution = answer(prepared, columns.detach())
            # The backward pass solves again, after this call's report has been published.
            ours = call if not call.published else Call("solve", system, columns.shape[-1])
            account_solve(ours, linear_system, prepared, solution, reason)
            if call.published:
                ours.publish()
            return solution.value

        own = kernel if isinstance(kernel, Tensor) else system.fused
        assert isinstance(own, Tensor | FusedKernel)
        solutions.append(autograd.solved(own, noise, b, solve_columns))
    call.publish()
    result = torch.stack(solutions).reshape(*batch_shape, n, rhs.shape[-1])
    return result.squeeze(-1) if vector else result


def root_inv_decomposition(
    self: AddedDiagLinearOperator,
    initial_vectors: Tensor | None = None,
    test_vectors: Tensor | None = None,
    method: str | None = None,
) -> Any:
    name, arguments = "root_inv_decomposition", (initial_vectors, test_vectors, method)
    original = LinearOperator.root_inv_decomposition
    asked = any(argument is not None for argument in arguments)
    if settings.rangeformer.off() or (not asked and _is_in_cache(self, name, kwargs_pkl=_NO_KEYWORDS)):
        return original(self, *arguments) if asked else original(self)
    system = Reason.CUSTOM_ROOT if asked else eligible(self, decline_prediction_reason(self))
    for_variance = called_by_covar_cache()
    if not isinstance(system, Reason) and torch.is_grad_enabled() and not for_variance:
        system = Reason.ROOT_GRADIENT if system.requires_grad else system
    if isinstance(system, Reason):
        report_declined(name, self, system)
        return original(self, *arguments) if asked else original(self)

    call = Call(name, system, 0)
    n = self.shape[-1]
    roots, factors, triangular = [], [], True
    with torch.no_grad(), no_autocast():
        for index, (kernel, noise) in enumerate(system.elements()):
            linear_system = _symmetric_system(call, system, kernel, noise)
            chosen = settings.solver.value()
            small = n < settings.min_size.value_on(linear_system.device)
            # A batch mixes badly: roots of different widths cannot be stacked.
            exact = small or not for_variance or self.batch_shape.numel() > 1 or isinstance(chosen, Exact)
            solver = Exact(chosen.prediction_tolerance) if exact else _for_roots(chosen)
            exact_reason = (Reason.EXACT_SMALL if small else Reason.EXACT_ROOT) if exact else None
            with because(exact_reason and exact_reason.value):
                prepared = solver.prepare(linear_system, memory_of(system.owners, system.kernel, index))
            root: InverseRoot = prepared.inv_root()
            reason = exact_reason or root.reason
            call.add(linear_system, prepared, reason, variance_error=max(call.report.variance_error or 0, root.error))
            roots.append(root.value)
            # Not by its shape: a range as wide as the matrix gives a square root that is not triangular.
            triangular = triangular and prepared.exact is not None
            if isinstance(prepared, ExactPrepared):
                factors.append(prepared.factor.to(kernel.dtype))
    call.publish()
    stacked = torch.stack(roots).reshape(*self.batch_shape, *roots[0].shape)
    if not triangular:
        # Not cached on the operator: a later fantasy needs the triangular pair below.
        return RootLinearOperator(stacked)
    result = RootLinearOperator(TriangularLinearOperator(stacked, upper=True))
    add_to_cache(self, name, result)
    if factors:
        factor = torch.stack(factors).reshape(*self.batch_shape, n, n)
        add_to_cache(self, "root_decomposition", RootLinearOperator(TriangularLinearOperator(factor)))
    return get_from_cache(self, name)


# Up to this a difference of K_ij and K_ji, over the largest entry, is an error of the kernel's own evaluation.
_EVALUATION_ERROR = 1e-5


def _symmetric_system(call: Call, system: EligibleSystem, kernel: Tensor | KernelMatrix, noise: Tensor) -> LinearSystem:
    """A of the symmetric part of K. A fused kernel's matrix is symmetric to the last bit."""
    if not isinstance(kernel, Tensor) or system.fused is not None:
        return _linear_system(kernel, noise)
    given = kernel.detach()
    mean, difference = symmetric_part(given)
    linear_system = _linear_system(mean, noise)
    if mean is not given:
        call.note("the kernel matrix is not symmetric: its symmetric part answers")
    if difference > 0:
        linear_system.asymmetry = min(difference, _EVALUATION_ERROR)
    linear_system.trusted = False
    return linear_system


def _linear_system(kernel: Tensor | KernelMatrix, noise: Tensor) -> LinearSystem:
    return LinearSystem(kernel.detach() if isinstance(kernel, Tensor) else kernel, noise.detach())


def _columns(rhs: Tensor | None) -> int:
    if rhs is None:
        return 0
    return 1 if rhs.dim() < 2 else rhs.shape[-1]


def _exact_training_reason(system: EligibleSystem, columns: int) -> Reason | None:
    n = system.kernel.shape[-1]
    chosen = settings.solver.value()
    if isinstance(chosen, Direct):
        return None
    if n < settings.min_size.value_on(system.noise.device):
        return Reason.EXACT_SMALL
    if isinstance(chosen, Exact):
        return Reason.EXACT_ASKED
    if settings.exact_line_search.on() and inside_line_search():
        return Reason.EXACT_LINE_SEARCH
    if columns > max(1, n // _EXACT_COLUMNS) and isinstance(system.kernel, Tensor):
        kernel, noise = system.elements()[0]
        fits = exact_path_fits(_linear_system(kernel, noise), columns)
        return Reason.EXACT_MANY_COLUMNS if fits else None
    return None


# One Cholesky costs about as much as twenty passes with n / 32 columns (measured at n = 4000, float32).
_EXACT_COLUMNS = 32


def _prepare_solve(system: LinearSystem, memory: Memory, columns: int) -> tuple[Prepared, Reason | None]:
    solver = settings.solver.value().for_predictions
    if isinstance(solver, Direct):
        return solver.prepare(system, memory), None
    if system.size < settings.min_size.value_on(system.device):
        reason = Reason.EXACT_SMALL
    elif isinstance(solver, Exact):
        reason = Reason.EXACT_ASKED
    elif columns > system.size // _EXACT_COLUMNS and system.held_dense and exact_path_fits(system, columns):
        reason = Reason.EXACT_MANY_COLUMNS
    else:
        return solver.prepare(system, memory), None
    with because(reason.value):
        return Exact(solver.tolerance).prepare(system), reason


def _for_roots(chosen: Certified | Direct | Exact) -> Certified | Exact:
    """A root serves every later variance: all the landmarks at once. The network has no answer for it."""
    if isinstance(chosen, Exact):
        return chosen.for_predictions
    certified = chosen.certified if isinstance(chosen, Direct) else chosen
    return replace(certified, tolerance=certified.prediction_error, adaptive_rank=False)
