"""Solves behind predictive means k*' X with X from ``solve(y)``, as accurate as these need.

A relative residual says little about them: next to little noise its error is amplified.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.preconditioner.certificate import (
    FEW_COLUMNS,
    energy_from_above,
    inv_quad_bounds,
    relative_residual,
    wide_residual,
)
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.corrections import corrected_by_factor, correction_beside_probes
from gp_rangeformer.solvers.exact import ExactPrepared
from gp_rangeformer.system.answers import Prepared, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason

# Of means whose columns have probes beside them: float32 leaves about a thousandth of what it solves.
_ROUNDS, _REDUCTION, _WASTED = 8, 1e-3, 3
# Of a mean, each of which takes a factor of at most 30 off the residual: the bound of its error is loose, and thirty
# times less residual took errors from 1e-2 to 5e-4 of the deviation.
_MEAN_REFINEMENTS, _MEAN_REDUCTION = 3, 0.03
# About A^-1 of a residual, if it was found, and the iterations spent; to how much of its norm, in which refinement.
Correction = tuple[Tensor | None, int]
Correct = Callable[[Tensor, float, int], Correction]


def mean_solve(
    prepared: Prepared, rhs: Tensor, *, wide: bool = False, start: Float64[Tensor, "n m"] | None = None
) -> Solution:
    """A^-1 rhs such that means k*' X are as accurate as their own standard deviations ask, where rounding allows.

    Asked for is an error below the solver's ``prediction_error`` times the standard deviation of an observation: a
    bound in the units of the prediction, whatever those of the targets and however far from zero they are. With x off
    by A^-1 r it follows from |k*' A^-1 r|^2 <= k*' A^-1 k* r' A^-1 r <= k** r' P^-1 r, at any point, against the
    noise's deviation alone; or from weights w of known points, k* = A w + q, as

        |k*' A^-1 r| <= |w|_1 max |r_i| + (q' A^-1 q)^1/2 (r' P^-1 r)^1/2,

    where q' A^-1 q is what further points take off the variance given those of w. With neighbours at hand that is taken
    for points whose weights add up to no more than the training points' own, and of whose variance given them an
    observation's is at least half: next to little noise it asks for a hundred times less. x is refined with residuals
    that are summed in float64, x itself in float64, up to three times; what the answer leaves is ``mean_error``. More
    than four right-hand sides are no targets: they get their certified residual.
    Cost beyond the solve: two wide passes over K, and for a refinement about as many iterations again.

    :param wide: keep x in float64: for means whose products are summed in it.
    :param start: an x that is near, where that and neighbours are at hand: of the same targets and a few more.
    """
    if wide and isinstance(prepared, CertifiedPrepared) and prepared.vecchia is not None:
        found = mean_beside_probes(prepared, rhs, start)
        if found is not None:
            return found
    solution = prepared.solve(rhs)
    if not isinstance(prepared, ExactPrepared | CertifiedPrepared) or rhs.shape[1] > FEW_COLUMNS:
        return solution
    system = prepared.system
    before = system.passes - solution.passes
    value, iterations = solution.value.double(), solution.iterations
    if isinstance(prepared, CertifiedPrepared) and solution.converged:
        value, iterations = _refined(prepared, rhs, value, iterations, _by_iterations(prepared))
    rounded = value if wide else value.to(rhs.dtype)
    residual = wide_residual(system, rhs, rounded)
    factorised = prepared.exact
    if factorised is not None:
        corrected = corrected_by_factor(factorised.factor, residual)
        if wide and rhs.dtype != torch.float64:
            rounded = rounded + corrected
            residual = wide_residual(system, rhs, rounded)
            corrected = corrected_by_factor(factorised.factor, residual)
        energy = (residual * corrected).sum(0)
        return replace(solution, value=rounded, mean_error=_mean_error(system, energy, rounded))
    assert isinstance(prepared, CertifiedPrepared)
    return _with_evidence(prepared, rhs, rounded, residual, iterations, before, solution.reason)


def _with_evidence(
    prepared: CertifiedPrepared,
    rhs: Tensor,
    value: Tensor,
    residual: Float64[Tensor, "n m"],
    iterations: int,
    before: int,
    reason: Reason,
) -> Solution:
    system, preconditioner = prepared.system, prepared.preconditioner
    assert preconditioner is not None
    energy = _energy(system, preconditioner, residual)
    quadratic, bounds = inv_quad_bounds(system, preconditioner, rhs, value, residual)
    return Solution(
        value=value,
        residual=relative_residual(system, rhs, value, residual),
        quadratic=quadratic,
        inv_quad=bounds,
        iterations=iterations,
        passes=system.passes - before,
        reason=reason,
        mean_error=_mean_error(system, energy, value, _weighted(prepared, residual, energy)),
    )


def mean_beside_probes(
    prepared: CertifiedPrepared, rhs: Tensor, start: Float64[Tensor, "n m"] | None, patience: int | None = None
) -> Solution | None:
    """As :func:`mean_solve`, refined from ``start``, or zero, in columns beside probes; None where it does not come to
    what is asked.

    :param patience: iterations that a factor of 1000 may take, about; None for ``max_passes``.
    """
    return _refined_from(prepared, rhs, start, _by_iterations(prepared, patience))


def mean_by_factor(
    prepared: CertifiedPrepared, rhs: Tensor, start: Float64[Tensor, "n m"] | None, factor: Float[Tensor, "n n"]
) -> Solution | None:
    """The same by a factor of A: how it was rounded costs refinements, not accuracy."""
    return _refined_from(
        prepared, rhs, start, lambda residual, target, number: (corrected_by_factor(factor, residual), 0)
    )


def _refined_from(
    prepared: CertifiedPrepared, rhs: Tensor, start: Float64[Tensor, "n m"] | None, correct: Correct
) -> Solution | None:
    if prepared.preconditioner is None:
        return None
    system, solver = prepared.system, prepared.solver
    before = system.passes
    value = torch.zeros_like(rhs, dtype=torch.float64) if start is None else start
    value, iterations = _refined(prepared, rhs, value, 0, correct, rounds=_ROUNDS, reduction=_REDUCTION)
    residual = wide_residual(system, rhs, value)
    found = _with_evidence(prepared, rhs, value, residual, iterations, before, Reason.CONVERGED)
    # Not by the relative residual as well: that counts the rounding of K's entries, which no iteration changes.
    return found if found.mean_error is not None and found.mean_error <= solver.prediction_error else None


def _by_iterations(prepared: CertifiedPrepared, patience: int | None = None) -> Correct:
    """By block CG of as many iterations, at most."""

    def correct(residual: Float64[Tensor, "n m"], target: float, number: int) -> Correction:
        found = correction_beside_probes(prepared, residual, target, number, patience)
        return found.value if found.reason is Reason.CONVERGED else None, found.iterations

    return correct


def _refined(
    prepared: CertifiedPrepared,
    rhs: Tensor,
    value: Float64[Tensor, "n m"],
    iterations: int,
    correct: Correct,
    rounds: int = _MEAN_REFINEMENTS,
    reduction: float = _MEAN_REDUCTION,
) -> tuple[Float64[Tensor, "n m"], int]:
    """x, nearer to A^-1 rhs, and the iterations spent so far."""
    system, preconditioner = prepared.system, prepared.preconditioner
    assert preconditioner is not None
    residual = wide_residual(system, rhs, value)
    energy = _energy(system, preconditioner, residual)
    for number in range(rounds):
        error = min(_at_any_point(system, energy), _weighted(prepared, residual, energy))
        excess = error / prepared.solver.prediction_error
        if not excess > 1:
            break
        target = max(0.5 / excess, reduction)
        correction, spent = correct(residual, target, number)
        iterations += spent
        if correction is None:
            break
        nearer = value + correction
        left = wide_residual(system, rhs, nearer)
        smaller = _energy(system, preconditioner, left)
        if not bool((smaller <= energy).all()):
            break
        if float((left.norm(dim=0) / residual.norm(dim=0)).max()) > _WASTED * target:
            reduction = max(reduction, _MEAN_REDUCTION)  # rounding has taken over before
        value, residual, energy = nearer, left, smaller
    return value, iterations


def _energy(
    system: LinearSystem, preconditioner: NystromPreconditioner, residual: Float64[Tensor, "n m"]
) -> Float64[Tensor, " m"]:
    """r' P^-1 r from above, at least r' A^-1 r."""
    scale = torch.linalg.vector_norm(residual, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    unit = (residual / scale).to(preconditioner.root_noise.dtype)  # small residuals would underflow in float32
    wide = unit.double()
    found = (wide * preconditioner.solve(unit)).sum(0)
    whitened = (wide.square() / system.noise.unsqueeze(-1)).sum(0)
    return energy_from_above(system, preconditioner, found, whitened) * scale.square()


def _at_any_point(system: LinearSystem, energy: Float64[Tensor, " m"]) -> float:
    """Of a mean k*' x, r' A^-1 r <= ``energy``, over the noise's deviation, where k** <= max_i A_ii."""
    facts = system.diagonal_facts
    return float(energy.clamp_min(0).max() * facts.largest_total / facts.smallest_noise) ** 0.5


def _weighted(prepared: CertifiedPrepared, residual: Float64[Tensor, "n m"], energy: Float64[Tensor, " m"]) -> float:
    """The same from weights of known points; infinite without neighbours."""
    if prepared.vecchia is None:
        return math.inf
    largest = float(residual.abs().max()) / prepared.system.diagonal_facts.smallest_noise**0.5
    return prepared.vecchia.largest_weights * largest + float(energy.clamp_min(0).max()) ** 0.5


def _mean_error(
    system: LinearSystem, energy: Float64[Tensor, " m"], value: Tensor, weighted: float = math.inf
) -> float:
    """The certified error of a predictive mean over the standard deviation of an observation, at any point whose prior
    variance is at most the largest of training. ``energy``: r' A^-1 r or more of the solution ``value``; ``weighted``:
    what is known otherwise."""
    facts = system.diagonal_facts
    if not facts.smallest_noise > 0:
        return math.inf
    error = min(_at_any_point(system, energy), weighted)
    if not system.trusted:
        # The residual is one of the rows as they are; that of the symmetric part differs by the rounding of entries.
        length = torch.linalg.vector_norm(value, dim=0, dtype=torch.float64)
        entries = system.entry_error * system.size**0.5 * facts.largest_total
        rounding = entries * float(length.max()) / facts.smallest_noise**0.5
        error += rounding * (facts.largest_total / facts.smallest_noise) ** 0.5
    return error
