"""Solves behind predictive covariances: symmetric, never too large an explanation, as accurate as a variance needs.

The host forms K** - B' X with B = K_X* and X from ``solve(B)``. A relative residual says little about that difference:
its error is of first order in the residual and of either sign, and next to little noise the difference is small.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.ranges.memory import Memory
from gp_rangeformer.solvers.base import Solution
from gp_rangeformer.solvers.certificate import inv_quad_bounds
from gp_rangeformer.solvers.cholesky import ExactPrepared, ExactSolver
from gp_rangeformer.solvers.galerkin import galerkin
from gp_rangeformer.solvers.rangeformer import RangeFormerPrepared
from gp_rangeformer.solvers.reason import Reason

_REFINEMENTS = 2


def covariance_solve(prepared: ExactPrepared | RangeFormerPrepared, rhs: Tensor) -> Solution:
    """A^-1 rhs such that rhs' X is symmetric, and at most rhs' A^-1 rhs in the order of semi-definite matrices.

    The best combination of a solve's columns in the norm of A has both properties, and an error of second order
    (measured at a relative residual of 1e-3, float32, noise 0.01: 1e-3 instead of 3e-2 of variance plus noise). It is
    refined until the certified error of every variance is below ``settings.tolerance`` times the noise, a lower bound
    of the variance of an observation; the exact path answers if rounding forbids that.
    Cost beyond the solve: one pass over K with as many columns, seldom a second, shorter solve.
    """
    solution = prepared.solve(rhs)
    if isinstance(prepared, ExactPrepared) or prepared.exact is not None or not solution.converged:
        return solution
    system, preconditioner = prepared.system, prepared.preconditioner
    assert preconditioner is not None
    allowed = settings.tolerance.value() * float(system.noise.min())
    norm = torch.linalg.vector_norm(rhs, dim=0)
    iterations, start = solution.iterations, system.passes - solution.passes
    value, residual = galerkin(system, solution.value, rhs)
    for refinement in range(1 + _REFINEMENTS):
        quadratic, bounds = inv_quad_bounds(system, preconditioner, rhs, value, residual)
        error = torch.linalg.vector_norm(residual, dim=0) + system.residual_rounding(value)
        relative = torch.where(norm > 0, error / norm, 0)
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
