"""The three methods of ``AddedDiagLinearOperator`` that the flag reroutes; with the flag off they call the host's."""

from __future__ import annotations

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
from gp_rangeformer.allocation.free_cores import free_cores
from gp_rangeformer.allocation.free_memory import because
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.native.neighbours import MOST_NEIGHBOURS
from gp_rangeformer.plugin import autograd
from gp_rangeformer.plugin.eligibility import (
    EligibleSystem,
    called_by_covar_cache,
    called_by_predictive_covariance,
    check_rhs,
    decline_prediction_reason,
    decline_reason,
    eligible,
    shapes_match,
)
from gp_rangeformer.plugin.likelihood import EXACT_COLUMNS, likelihood_terms
from gp_rangeformer.plugin.owners import memory_of
from gp_rangeformer.plugin.reports import Call, account_solve, report_declined
from gp_rangeformer.plugin.symmetric import symmetric_system
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact, ExactPrepared
from gp_rangeformer.solvers.factorisation import exact_path_fits
from gp_rangeformer.solvers.predictive_covariances import covariance_solve
from gp_rangeformer.solvers.predictive_means import mean_solve
from gp_rangeformer.system.answers import InverseRoot, Prepared
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.torch_modes import no_autocast

# From here on a pass over K costs so much that twice the neighbours pay in a solve made once per model (kin40k,
# n = 36,000: 65 iterations instead of 137, for the time of ten passes).
_LARGE = 2**14
# Points below which a factorisation takes less than a preconditioner and the iterations of few columns; and where the
# solution will be differentiated, which asks for many more iterations and solves twice.
_FACTORISED_BELOW, _DIFFERENTIATED_BELOW = 2500, 4001
_NO_KEYWORDS = pickle.dumps({})  # how linear_operator's memoisation spells a call without keyword arguments


def inv_quad_logdet(
    self: AddedDiagLinearOperator,
    inv_quad_rhs: Tensor | None = None,
    logdet: bool | None = False,
    reduce_inv_quad: bool | None = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Both terms of a Gaussian log likelihood, with their gradients: what training asks.

    In: A = K + D, (*batch) n x n, and right-hand sides, n or (*batch) n x m. Out: rhs_j' A^-1 rhs_j, summed over
    columns or not, and log|A|, in the host's shapes. Remembered, with the kernel module that made K: solutions,
    landmarks, what rank and how many probes were needed; a report is published. What is not eligible is the host's.
    """
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


def solve(self: AddedDiagLinearOperator, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
    """A^-1 right, or left A^-1 right: predictive means and covariances.

    In: right-hand sides, n or (*batch) n x m. Out: as the host's, differentiable; the backward pass solves once more.
    Nothing new is remembered; a solution for the same targets is where it starts. A report is published.
    """
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


@free_cores()
def _solve(operator: AddedDiagLinearOperator, system: EligibleSystem, right_tensor: Tensor) -> Tensor:
    check_rhs(system, right_tensor, of_solve=True)
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
    differentiated = torch.is_grad_enabled() and (system.requires_grad or right_tensor.requires_grad)
    answer = covariance_solve if called_by_predictive_covariance() else mean_solve
    points = system.fused if isinstance(system.fused, FusedKernel) else None
    solutions = []
    for index, ((kernel, noise), b) in enumerate(
        zip(system.elements(), rhs.reshape(-1, n, rhs.shape[-1]).unbind(0), strict=True)
    ):
        linear_system = symmetric_system(call, system, kernel, noise, points)
        with torch.no_grad():
            memory = memory_of(system.owners, system.kernel, index)
            prepared, exact_reason = prepare_solve(
                linear_system,
                memory,
                rhs.shape[-1],
                _DIFFERENTIATED_BELOW if differentiated else _FACTORISED_BELOW,
                differentiated and exact_path_fits(linear_system, rhs.shape[-1]),
            )
            largest = torch.linalg.vector_norm(b, dim=0, dtype=torch.float64).amax()

        def solve_columns(
            columns: Tensor, linear_system=linear_system, prepared=prepared, reason=exact_reason, largest=largest
        ) -> Tensor:
            ours, given, scales = call, columns.detach(), None
            if call.published:
                # The backward pass solves again. What it is given has the scale of the loss; what is asked of a
                # solution has that of these right-hand sides.
                ours, scales = Call("solve", system, columns.shape[-1]), _scales(given, largest)
                given = given / scales
            with torch.no_grad(), no_autocast():
                solution = answer(prepared, given)
            account_solve(ours, linear_system, prepared, solution, reason)
            if scales is None:
                return solution.value
            ours.publish()
            return solution.value * scales

        own = kernel if isinstance(kernel, Tensor) else system.fused
        assert isinstance(own, Tensor | FusedKernel)
        solutions.append(autograd.solved(own, noise, b, solve_columns))
    call.publish()
    result = torch.stack(solutions).reshape(*batch_shape, n, rhs.shape[-1])
    return result.squeeze(-1) if vector else result


@free_cores()
def root_inv_decomposition(
    self: AddedDiagLinearOperator,
    initial_vectors: Tensor | None = None,
    test_vectors: Tensor | None = None,
    method: str | None = None,
) -> Any:
    """A root S of A^-1, S S' = A^-1 or a little less: predictive variances (``fast_pred_var``) and fantasies.

    In: nothing where the plug-in answers. Out: an operator with the root, without a graph: tall on the preconditioner's
    range where that is accurate enough, else triangular, and then also kept in the operator's own cache, as the host
    keeps it. A report is published.
    """
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
    # A batch mixes badly: roots of different widths cannot be stacked.
    solver, exact_reason = _root_solver(system, for_variance and self.batch_shape.numel() == 1)
    points = system.fused if isinstance(system.fused, FusedKernel) else None
    roots, factors, triangular = [], [], True
    with torch.no_grad(), no_autocast():
        for index, (kernel, noise) in enumerate(system.elements()):
            linear_system = symmetric_system(call, system, kernel, noise, points)
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


def _scales(columns: Tensor, largest: Tensor) -> Tensor:
    """By which columns are divided, so that all have the norm ``largest`` or are zero."""
    norms = torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64)
    return torch.where((norms > 0) & (largest > 0), norms / largest, 1.0).to(columns.dtype)


def _columns(rhs: Tensor | None) -> int:
    if rhs is None:
        return 0
    return 1 if rhs.dim() < 2 else rhs.shape[-1]


def prepare_solve(
    system: LinearSystem, memory: Memory, columns: int, factorised_below: int = 0, differentiated: bool = False
) -> tuple[Prepared, Reason | None]:
    """Whoever the settings choose for so many right-hand sides, and why that is the exact path where it is.

    :param factorised_below: points below which it is, where nobody has set ``min_size``.
    :param differentiated: whether the solution has a gradient, which shows its error, where a value shows its square.
    """
    chosen = settings.solver.value()
    solver = chosen.for_derivatives if differentiated and isinstance(chosen, Certified) else chosen.for_predictions
    if isinstance(solver, Certified) and system.size >= _LARGE:
        solver = replace(solver, neighbours=min(2 * solver.neighbours, MOST_NEIGHBOURS))
    if isinstance(solver, Direct):
        return solver.prepare(system, memory), None
    if system.size < settings.min_size.value_on(system.device, factorised_below):
        reason = Reason.EXACT_SMALL
    elif isinstance(solver, Exact):
        reason = Reason.EXACT_ASKED
    elif columns > system.size // EXACT_COLUMNS and system.held_dense and exact_path_fits(system, columns):
        reason = Reason.EXACT_MANY_COLUMNS
    else:
        return solver.prepare(system, memory), None
    with because(reason.value):
        return Exact(solver.tolerance).prepare(system), reason


def _root_solver(system: EligibleSystem, low_rank: bool) -> tuple[Certified | Exact, Reason | None]:
    """Who makes a root of A^-1, and why the exact path does where it does.

    :param low_rank: whether a tall root would serve: for every later variance, so with all the landmarks at once. The
        network has none.
    """
    chosen = settings.solver.value()
    exact = Exact(chosen.prediction_tolerance)
    if system.kernel.shape[-1] < settings.min_size.value_on(system.noise.device):
        return exact, Reason.EXACT_SMALL
    if isinstance(chosen, Exact):
        return exact, Reason.EXACT_ASKED
    if not low_rank:
        return exact, Reason.EXACT_ROOT
    certified = chosen.certified if isinstance(chosen, Direct) else chosen
    return replace(certified, tolerance=certified.prediction_error, adaptive_rank=False), None
