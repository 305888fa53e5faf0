"""Solves behind predictions, as accurate as a predictive mean or variance needs.

The host forms means k*' X with X from ``solve(y)``, and covariances K** - B' X with B = K_X* and X from ``solve(B)``. A
relative residual says little about either: next to little noise its error is amplified, and the difference is small.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.ranges.memory import Memory
from gp_rangeformer.solvers.base import Solution
from gp_rangeformer.solvers.certificate import inv_quad_bounds, relative_residual
from gp_rangeformer.solvers.cholesky import ExactPrepared, ExactSolver
from gp_rangeformer.solvers.direct import DirectPrepared
from gp_rangeformer.solvers.galerkin import galerkin
from gp_rangeformer.solvers.rangeformer import RangeFormerPrepared
from gp_rangeformer.solvers.reason import Reason

_REFINEMENTS = 2
# The bound of a mean's error is loose: thirty times less residual took errors from 1e-2 to 5e-4 of the deviation.
_MEAN_REDUCTION = 0.03
Prepared = ExactPrepared | RangeFormerPrepared | DirectPrepared


def mean_solve(prepared: Prepared, rhs: Tensor) -> Solution:
    """A^-1 rhs such that means k*' X are as accurate as their own standard deviations ask, where rounding allows.

    With x off by A^-1 r, |k*' A^-1 r|^2 <= k*' A^-1 k* r' A^-1 r <= k** r' P^-1 r. Asked for is an error below
    ``settings.tolerance`` times the noise's standard deviation, a lower bound of the deviation of an observation, for a
    rhs = y in its natural units, y' A^-1 y = n. One refinement goes towards that; it is not enforced, because the bound
    is loose and float32 rounding may forbid it. The certified relative residual of the solve holds in any case.
    Cost beyond the solve: one pass over K, and for the refinement about as many iterations again.
    """
    solution = prepared.solve(rhs)
    if not isinstance(prepared, RangeFormerPrepared) or not solution.converged:
        return solution
    system, preconditioner = prepared.system, prepared.preconditioner
    assert preconditioner is not None
    start = system.passes - solution.passes
    facts = system.diagonal_facts
    variance = float(system.diagonal().max()) + facts.largest_noise
    share = settings.tolerance.value() ** 2 * facts.smallest_noise / variance
    allowed = (share * solution.quadratic / system.size).clamp_min(torch.finfo(torch.float64).tiny)
    residual = rhs - system.matmul(solution.value)
    energy = (residual * preconditioner.solve(residual)).double().sum(0).cpu()
    excess = float((energy / allowed).max())
    if excess > 1:
        target = max(0.5 * excess**-0.5, _MEAN_REDUCTION)
        refiner = replace(prepared, solver=replace(prepared.solver, tolerance=target), memory=Memory())
        correction = refiner.attempt(residual, None)
        value = solution.value + correction.value
        refined = rhs - system.matmul(value)
        if bool(((refined * preconditioner.solve(refined)).double().sum(0).cpu() <= energy).all()):
            residual = refined
            solution = replace(solution, value=value, iterations=solution.iterations + correction.iterations)
    quadratic, bounds = inv_quad_bounds(system, preconditioner, rhs, solution.value, residual)
    return replace(
        solution,
        residual=relative_residual(system, rhs, solution.value, residual),
        quadratic=quadratic,
        inv_quad=bounds,
        passes=system.passes - start,
    )


def covariance_solve(prepared: Prepared, rhs: Tensor) -> Solution:
    """A^-1 rhs such that rhs' X is symmetric, and at most rhs' A^-1 rhs in the order of semi-definite matrices.

    The best combination of a solve's columns in the norm of A has both properties, and an error of second order
    (measured at a relative residual of 1e-3, float32, noise 0.01: 1e-3 instead of 3e-2 of variance plus noise). It is
    refined until the certified error of every variance is below ``settings.tolerance`` times the noise, a lower bound
    of the variance of an observation; the exact path answers if rounding forbids that.
    Cost beyond the solve: one pass over K with as many columns, seldom a second, shorter solve.
    """
    solution = prepared.solve(rhs)
    if not isinstance(prepared, RangeFormerPrepared) or prepared.exact is not None or not solution.converged:
        return solution
    system, preconditioner = prepared.system, prepared.preconditioner
    assert preconditioner is not None
    allowed = settings.tolerance.value() * system.diagonal_facts.smallest_noise
    iterations, start = solution.iterations, system.passes - solution.passes
    value, residual = galerkin(system, solution.value, rhs)
    for refinement in range(1 + _REFINEMENTS):
        quadratic, bounds = inv_quad_bounds(system, preconditioner, rhs, value, residual)
        relative = relative_residual(system, rhs, value, residual)
        excess = max(interval.width for interval in bounds) / allowed
        if excess <= 1 and bool((relative <= prepared.solver.tolerance).all()):
            passes = system.passes - start
            return Solution(value, relative, quadratic, bounds, iterations, passes, Reason.CONVERGED)
        if refinement == _REFINEMENTS:
            break
        # The width falls with the square of the residual; a factor of 2 in reserve saves another round.
        share = min(0.5, 0.5 * max(excess, 1.0) ** -0.5)
        refiner = replace(prepared, solver=replace(prepared.solver, tolerance=share), memory=Memory())
        correction = refiner.solve(residual)
        if not correction.converged:
            break
        iterations += correction.iterations
        value, residual = galerkin(system, value + correction.value, rhs)
    prepared.exact = ExactSolver(prepared.solver.tolerance).prepare(system)
    return replace(prepared.exact.solve(rhs), reason=Reason.ROUNDING)
