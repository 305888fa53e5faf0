"""Block preconditioned conjugate gradients: all right-hand sides share their search directions.

Dubrulle's BCGrQ (2001) in the inner product of P^-1: the residual block is kept as R = S Phi with S' P^-1 S = I, so the
small cores stay well conditioned where the plain recurrence of O'Leary (1980) loses its directions to float32 rounding
(on pol at n = 4000 the plain one stagnated where this one converges). Directions that became dependent are dropped.
One iteration is one pass over K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.solvers.base import LinearSystem
from gp_rangeformer.solvers.nystrom import NystromPreconditioner
from gp_rangeformer.solvers.reason import Reason

# Give up when this many iterations have not halved the largest residual: rounding has taken over. Shorter plateaus are
# the usual start of a hard system.
_PATIENCE = 50
# Columns whose share outside the span of the others is larger than this, in the norm of P^-1, are orthonormalised by a
# Cholesky factor; an eigendecomposition, which can drop directions, costs ten times as much (on a GPU, hundreds of
# launches).
_INDEPENDENT = 1e-2


@dataclass(frozen=True)
class BlockCGResult:
    """X, the residual R that its updates leave (each with the rounding of a product), iterations and why it stopped.

    ``correction``: P^-1 R, which the recurrence knows, with the same rounding; None unless converged.
    """

    value: Float[Tensor, "n m"]
    residual: Float[Tensor, "n m"]
    iterations: int
    reason: Reason
    correction: Float[Tensor, "n m"] | None = None


def block_cg(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    initial: Float[Tensor, "n m"],
    residual: Float[Tensor, "n m"],
    *,
    stop_norm: Float[Tensor, " m"],
    stop_energy: Float[Tensor, " m"],
    max_passes: int,
) -> BlockCGResult:
    """Reduce ``residual = rhs - A @ initial`` until every column is small enough.

    :param stop_norm: |r| to reach, per column.
    :param stop_energy: r' P^-1 r to reach, per column (infinity where it does not matter).
    :param max_passes: the most passes over K to spend.
    Cost per iteration: one pass with at most m columns, O(n r m) for P, O(n m^2); no n x n memory.
    """
    if not bool(residual.sum().isfinite()):
        return BlockCGResult(initial, residual, 0, Reason.NOT_PSD)
    scale = torch.linalg.vector_norm(residual, dim=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    solution, carried = initial.clone(), residual.clone()
    shared, preconditioned, coefficients = _orthonormalise(preconditioner, residual / scale)
    coefficients = coefficients * scale.double()
    directions = preconditioned
    best, since_best = float("inf"), 0
    iterations = 0
    while True:
        # R = S Phi: norms from the Gram matrix of S, energies from Phi alone.
        gram = shared.mT.double() @ shared.double()
        norm = torch.linalg.vecdot(coefficients, gram @ coefficients, dim=0).clamp_min(0).sqrt()
        energy = coefficients.square().sum(0)
        worst = float(torch.maximum(norm / stop_norm, (energy / stop_energy).sqrt()).max())
        if worst <= 1:
            correction = preconditioned @ coefficients.to(preconditioned.dtype)
            return BlockCGResult(solution, carried, iterations, Reason.CONVERGED, correction)
        if not worst < float("inf"):
            return BlockCGResult(solution, carried, iterations, Reason.NOT_PSD)
        if iterations >= max_passes:
            return BlockCGResult(solution, carried, iterations, Reason.MAX_PASSES)
        if worst < 0.5 * best:
            best, since_best = worst, 0
        else:
            since_best += 1
        if since_best >= _PATIENCE:
            return BlockCGResult(solution, carried, iterations, Reason.STAGNATION)

        image = system.matmul(directions)
        curvature = directions.mT.double() @ image.double()
        factor, info = torch.linalg.cholesky_ex(0.5 * (curvature + curvature.mT))
        if bool(info):
            return BlockCGResult(solution, carried, iterations, Reason.NOT_PSD)
        inverse = torch.cholesky_inverse(factor)
        step_sizes = (inverse @ coefficients).to(solution.dtype)
        solution.addmm_(directions, step_sizes)
        carried.addmm_(image, step_sizes, alpha=-1)
        remainder = torch.addmm(shared, image, inverse.to(image.dtype), alpha=-1)
        shared, preconditioned, step = _orthonormalise(preconditioner, remainder)
        coefficients = step @ coefficients
        directions = torch.addmm(preconditioned, directions, step.mT.to(directions.dtype))
        iterations += 1


def _orthonormalise(
    preconditioner: NystromPreconditioner, block: Float[Tensor, "n m"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"], Float[Tensor, "k m"]]:
    """S, P^-1 S and Phi with block = S Phi, S' P^-1 S = I, k <= m; dependent columns are dropped. Phi is float64."""
    preconditioned = preconditioner.solve(block)
    gram = block.mT.double() @ preconditioned.double()
    gram = 0.5 * (gram + gram.mT)
    scale = gram.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex(gram / scale / scale.unsqueeze(-1))
    # NaN, from a zero column, fails the comparison.
    if bool((info == 0) & (factor.diagonal().amin() > _INDEPENDENT)):
        coefficients = factor.mT * scale
        identity = torch.eye(len(scale), dtype=gram.dtype, device=gram.device)
        transform = torch.linalg.solve_triangular(coefficients, identity, upper=True).to(block.dtype)
        return block @ transform, preconditioned @ transform, coefficients
    eigenvalues, vectors = torch.linalg.eigh(gram)
    # Below this the Gram matrix holds rounding only: of float32 vectors (squared, eps^2) or of float64 sums (eps).
    cut = max(torch.finfo(block.dtype).eps ** 1.5, 1e-14)
    keep = eigenvalues > cut * eigenvalues[-1].clamp_min(1e-300)
    eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
    transform = (vectors * eigenvalues.rsqrt()).to(block.dtype)
    return block @ transform, preconditioned @ transform, eigenvalues.sqrt().unsqueeze(-1) * vectors.mT
