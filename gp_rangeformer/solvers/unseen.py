"""A training step's solve on an accelerator, without a look at it: everything is started, then everything is read.

The host decides after the fact. What certifies is an answer like any other; the rest goes on where it got to, with
:func:`~gp_rangeformer.solvers.refinement.refine`, which looks at every iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.preconditioner.certificate import SolutionEvidence, wide_residual
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.solvers.block_cg import BlockCG, largest_inverse
from gp_rangeformer.solvers.block_cores import DeviceCores
from gp_rangeformer.solvers.refinement import CARRIED, ROUNDING_OF_AN_UPDATE, SHRINK, Asked, sharp_columns
from gp_rangeformer.system.answers import Solution
from gp_rangeformer.system.device_cores import column_sums
from gp_rangeformer.system.linear_system import LinearSystem

_MOST = 16  # iterations that are started unseen


@dataclass(frozen=True)
class Unseen:
    """A solution that nobody has looked at. ``certified``: gives it with its evidence, or None where that does not
    certify; reads what the host has asked for."""

    value: Float[Tensor, "n m"]
    certified: Callable[[], Solution | None]


def shares_to_reach(tolerance: float, energy: Float64[Tensor, " m"], device: torch.device) -> Float64[Tensor, "2 m"]:
    """Of |b| for |r|, and of 1 for (r'P^-1 r)^1/2, where iterations stop."""
    return SHRINK * torch.stack([torch.full_like(energy, tolerance), (energy / SHRINK).sqrt()]).to(device)


def solve_unseen(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    rhs: Float[Tensor, "n m"],
    initial: Float[Tensor, "n m"] | None,
    *,
    tolerance: float,
    stop_energy: Float64[Tensor, " m"],
    shares: Float64[Tensor, "2 m"],
    iterations: int,
) -> Unseen:
    """``iterations`` of block CG from ``initial``, fewer where no more are needed, and their evidence.

    :param tolerance: of |r| / |b| per column.
    :param stop_energy: r' P^-1 r to reach, on the CPU: finite for the first column or for none.
    :param shares: :func:`shares_to_reach`, on the device.
    """
    start = system.passes
    norm = torch.linalg.vector_norm(rhs, dim=0)
    if initial is None:
        solution, residual = torch.zeros_like(rhs), rhs
    else:
        solution, residual = initial, rhs - system.matmul(initial)
    cores = DeviceCores(residual, norm, shares, functools.partial(largest_inverse, system, preconditioner))
    recurrence = BlockCG(system, preconditioner, solution, residual, cores)
    for _ in range(min(iterations, _MOST)):
        recurrence.iterate()
    value, residual, correction = recurrence.solution, recurrence.residual, recurrence.correction()
    if iterations > CARRIED:
        residual = rhs - system.matmul(value)
        correction = preconditioner.solve(residual)
    sums = [column_sums(rhs, value, residual, correction, system.noise)]
    sharp = sharp_columns(system, stop_energy.numpy())
    if sharp:
        first, own = rhs[:, :sharp], value[:, :sharp]
        exact = wide_residual(system, first, own)
        nearer = preconditioner.solve(exact.to(rhs.dtype))
        sums.append(column_sums(first, own, exact, nearer, system.noise))
    answers = system.ask(norm, cores.status, *sums)
    passes = system.passes - start

    def certified() -> Solution | None:
        length, status, *parts = answers()
        done, worst, reason = cores.read(status.numpy())
        if reason is not None or not worst <= 1:
            return None
        asked = Asked.of(system, preconditioner, rhs, length.double().numpy(), tolerance, stop_energy.numpy())
        evidence, *leading = (SolutionEvidence.of_sums(system, preconditioner, part) for part in parts)
        if not (evidence.residual_norm <= asked.residual).all():
            return None
        for exact in leading:
            evidence = evidence.with_leading(exact)
        roundings = 1 if iterations > CARRIED else 1 + ROUNDING_OF_AN_UPDATE * done
        found = asked.judge(evidence, value, correction, roundings, with_energy=False)
        return replace(found, iterations=done, passes=passes) if isinstance(found, Solution) else None

    return Unseen(value, certified)
