"""Both terms of the likelihood, differentiable and reported: who answers, evaluation, autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.allocation.free_cores import OTHER_WORK, beside_other_work, free_cores
from gp_rangeformer.allocation.free_memory import because
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin import autograd
from gp_rangeformer.plugin.callers import inside_line_search
from gp_rangeformer.plugin.eligibility import EligibleSystem, check_rhs
from gp_rangeformer.plugin.gradient_error import GradientCheck
from gp_rangeformer.plugin.hyperparameters import FusedHyperparameters
from gp_rangeformer.plugin.observation import show, show_together
from gp_rangeformer.plugin.owners import memory_of
from gp_rangeformer.plugin.reports import Call, account_batch, account_training
from gp_rangeformer.plugin.symmetric import EVALUATION_ERROR, NOT_SYMMETRIC, detached_system, symmetric_system
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.solvers.exact_batch import evaluate_batch
from gp_rangeformer.solvers.factorisation import exact_path_fits
from gp_rangeformer.solvers.gradient_weight import GradientWeight
from gp_rangeformer.system.answers import Evaluation, Prepared
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.symmetry import symmetric_parts

# One Cholesky costs about as much as twenty passes with n / 32 columns (measured at n = 4000, float32).
EXACT_COLUMNS = 32


@free_cores()
def likelihood_terms(system: EligibleSystem, rhs: Tensor, with_logdet: bool = True) -> tuple[Tensor, Tensor]:
    """rhs_j' A^-1 rhs_j for every column j, (*batch) m, and log|A|, (*batch): differentiable, reported.

    :param rhs: (*batch) n m, perhaps of no columns.
    :raises RuntimeError, NanError, ProcessGroupError: as :func:`~gp_rangeformer.plugin.eligibility.check_rhs`.
    """
    *_, n, m = rhs.shape
    batch_shape, count = system.kernel.shape[:-2], system.count
    call = Call("inv_quad_logdet", system, m)
    if beside_other_work():
        call.note(OTHER_WORK)
    exact_reason = _exact_training_reason(system, m)
    columns = rhs.reshape(count, n, m)
    found = None if exact_reason is None else _together(call, system, columns, with_logdet, exact_reason)
    if found is None:
        # A device's training step is not looked at beforehand: the host reads it with everything else.
        late = system.kernel.device.type != "cpu" and exact_reason is None and system.share is None
        check_rhs(system, rhs, looked_at=not late)
        found = _one_by_one(call, system, columns, with_logdet, exact_reason, late=late)
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
    given = kernel.detach()
    with torch.no_grad():
        found = (given, 0.0) if system.fused is not None else symmetric_parts(given)
        if found is None:
            return None
        tolerance, (mean, difference) = settings.solver.value().tolerance, found
        asymmetry = min(difference, EVALUATION_ERROR)
        evaluation = evaluate_batch(mean, noise.detach(), rhs.detach(), tolerance, with_logdet, asymmetry)
    if evaluation is None:
        return None
    if mean is not given:
        call.note(NOT_SYMMETRIC)
    account_batch(call, count, evaluation, exact_reason)
    show_together(system, rhs, system.noise.reshape(count, n), evaluation)
    own = system.fused if system.detached else kernel
    assert own is not None
    return autograd.likelihood_terms(own, noise, rhs, evaluation)


def _one_by_one(
    call: Call, system: EligibleSystem, rhs: Tensor, with_logdet: bool, exact_reason: Reason | None, *, late: bool
) -> tuple[Tensor, Tensor]:
    """:param late: the right-hand sides have not been looked at, and are where something fails."""
    inv_quads, logdets = [], []
    parts = zip(system.elements(), system.fused_elements(), rhs.unbind(0), strict=True)
    for index, ((kernel, noise), fused, b) in enumerate(parts):
        linear_system = symmetric_system(call, system, kernel, noise, fused)
        memory = memory_of(system.owners, system.kernel, index)
        try:
            prepared, evaluation = _evaluate(call, linear_system, fused, memory, b.detach(), with_logdet, exact_reason)
        except Exception:
            if late:
                check_rhs(system, rhs)  # before anything else is blamed for it
            raise
        if late and evaluation.fallback_reason is not None:
            check_rhs(system, rhs)
        show(system, b, prepared, evaluation, noise)
        own = kernel if isinstance(kernel, Tensor) and not system.detached else fused
        assert own is not None
        inv_quad, log_determinant = autograd.likelihood_terms(own, noise, b, evaluation)
        inv_quads.append(inv_quad)
        logdets.append(log_determinant)
    if len(logdets) == 1:
        return inv_quads[0].unsqueeze(0), logdets[0].unsqueeze(0)
    return torch.stack(inv_quads), torch.stack(logdets)


def _evaluate(
    call: Call,
    system: LinearSystem,
    fused: FusedKernel | None,
    memory: Memory,
    rhs: Tensor,
    with_logdet: bool,
    exact_reason: Reason | None,
) -> tuple[Prepared, Evaluation]:
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
    if isinstance(evaluation.weight, GradientWeight):
        if check is not None:
            call.add_gradient(check.found, check.tolerance)
            if check.asked is None:
                of_host = "GPyTorch evaluates this kernel, or this sum of matrices"
                call.note(f"the gradient is measured for noise and scale alone: {of_host}")
        elif with_logdet and _asks_for_a_gradient(call):
            call.note("the gradient is not measured")
    return prepared, evaluation


def _asks_for_a_gradient(call: Call) -> bool:
    return torch.is_grad_enabled() and call.system.requires_grad


def _gradient_check(
    call: Call, system: LinearSystem, fused: FusedKernel | None, memory: Memory, columns: int
) -> GradientCheck | None:
    """Of a likelihood whose gradient may be asked for."""
    solver = settings.solver.value()
    tolerance = solver.gradient_tolerance if isinstance(solver, Certified) else math.inf
    if columns != 1 or math.isinf(tolerance) or not _asks_for_a_gradient(call):
        return None
    # Not through a graph of GPyTorch's or the user's own: their hooks would see weights that are no gradients.
    asked = None if fused is None else FusedHyperparameters(fused)
    numbers = system.ask(system.noise, *(() if asked is None else asked.parameters))
    return GradientCheck(asked, system.noise, memory, tolerance, numbers)


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
    if columns > max(1, n // EXACT_COLUMNS) and isinstance(system.kernel, Tensor):
        kernel, noise = system.elements()[0]
        fits = exact_path_fits(detached_system(kernel, noise), columns)
        return Reason.EXACT_MANY_COLUMNS if fits else None
    return None
