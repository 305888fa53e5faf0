"""Solves behind predictive covariances K** - B' X with X from ``solve(B)``, and single variances.

The difference is small next to little noise, where a relative residual says little about it.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.certificate import inv_quad_bounds, relative_residual, wide_residual
from gp_rangeformer.recycling.galerkin import galerkin
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.corrections import corrected_by_factor, correction_beside_probes
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.solvers.factorisation import solve_by_factor
from gp_rangeformer.system.answers import Interval, Prepared, Solution
from gp_rangeformer.system.reason import Reason

_REFINEMENTS, _OF_VARIANCES = 2, 3
_REDUCTION = 1e-3  # of a residual: float32 leaves about a thousandth of what it solves


def covariance_solve(prepared: Prepared, rhs: Tensor) -> Solution:
    """A^-1 rhs such that rhs' X is symmetric, and at most rhs' A^-1 rhs in the order of semi-definite matrices.

    The best combination of a solve's columns in the norm of A has both properties, and an error of second order
    (measured at a relative residual of 1e-3, float32, noise 0.01: 1e-3 instead of 3e-2 of variance plus noise). It is
    refined until the certified error of every variance is below the solver's ``prediction_error`` times the noise, a
    lower bound of the variance of an observation; the exact path answers if rounding forbids that.
    Cost beyond the solve: one pass over K with as many columns, seldom a second, shorter solve.
    """
    if isinstance(prepared, CertifiedPrepared) and prepared.exact is not None:
        return replace(prepared.exact.solve(rhs), reason=Reason.ROUNDING)
    solution = prepared.solve(rhs)
    if not isinstance(prepared, CertifiedPrepared) or prepared.exact is not None or not solution.converged:
        return solution
    found = _best_combination(prepared, rhs, solution)
    if found is not None:
        return found
    prepared.exact = Exact(prepared.solver.tolerance).prepare(prepared.system)
    return replace(prepared.exact.solve(rhs), reason=Reason.ROUNDING)


def variance_solve(
    prepared: CertifiedPrepared, rhs: Tensor, prior: float, factor: Float[Tensor, "n n"] | None = None
) -> list[Interval] | None:
    """Of single variances prior - b' A^-1 b, b a column of ``rhs``: intervals, certain but for what
    :meth:`~gp_rangeformer.system.linear_system.LinearSystem.quadratic_margin` counts, refined with residuals that are
    summed in float64 until their widths are below ``prediction_error`` of the variance of an observation, where
    rounding allows that. None where a solve does not certify. Never by the exact path.

    A solve's iterations, two or three times, and as many passes in float64.

    :param factor: of A, however rounded, which takes the place of most iterations.
    """
    system, preconditioner = prepared.system, prepared.preconditioner
    assert preconditioner is not None
    solution = prepared.attempt(rhs, None if factor is None else solve_by_factor(factor, rhs))
    if not solution.converged:
        return None
    noise, allowed = system.diagonal_facts.smallest_noise, prepared.solver.prediction_error
    value = solution.value.double()
    residual = wide_residual(system, rhs, value)
    for refinement in range(1 + _OF_VARIANCES):
        _, bounds = inv_quad_bounds(system, preconditioner, rhs, value, residual)
        found = [Interval(prior - bound.upper, prior - bound.lower) for bound in bounds]
        excess = max(interval.width / (noise + max(0.0, interval.lower)) for interval in found) / allowed
        if excess <= 1 or refinement == _OF_VARIANCES:
            return found
        # The width falls with the square of the residual; what rounding adds to it does not fall.
        if factor is not None:
            correction = corrected_by_factor(factor, residual)
        else:
            iterated = correction_beside_probes(prepared, residual, max(0.5 * excess**-0.5, _REDUCTION))
            if iterated.reason is not Reason.CONVERGED:
                return found
            correction = iterated.value
        value = value + correction
        residual = wide_residual(system, rhs, value)
    return None


def _best_combination(prepared: CertifiedPrepared, rhs: Tensor, solution: Solution) -> Solution | None:
    """None where it cannot be refined to what is allowed."""
    system, preconditioner = prepared.system, prepared.preconditioner
    assert preconditioner is not None
    allowed = prepared.solver.prediction_error * system.diagonal_facts.smallest_noise
    iterations, start = solution.iterations, system.passes - solution.passes
    value, residual = galerkin(system, solution.value, rhs)
    for refinement in range(1 + _REFINEMENTS):
        quadratic, bounds = inv_quad_bounds(system, preconditioner, rhs, value, residual)
        relative = relative_residual(system, rhs, value, residual, prepared.solver.tolerance)
        excess = max(interval.width for interval in bounds) / allowed
        if excess <= 1 and bool((relative <= prepared.solver.tolerance).all()):
            passes = system.passes - start
            return Solution(value, relative, quadratic, bounds, iterations, passes, Reason.CONVERGED)
        if refinement == _REFINEMENTS:
            break
        # The width falls with the square of the residual; a factor of 2 in reserve saves another round.
        share = min(0.5, 0.5 * max(excess, 1.0) ** -0.5)
        refiner = replace(prepared, solver=replace(prepared.solver, tolerance=share), memory=Memory())
        # attempt, not solve: what fails is answered by one factorisation.
        correction = refiner.attempt(residual, None)
        if not correction.converged:
            break
        iterations += correction.iterations
        value, residual = galerkin(system, value + correction.value, rhs)
    return None
