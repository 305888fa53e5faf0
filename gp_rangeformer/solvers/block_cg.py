"""Block preconditioned conjugate gradients: all right-hand sides share their search directions.

Dubrulle's BCGrQ (2001) in the inner product of P^-1: the residual block is kept as R = S Phi with S' P^-1 S = I, so the
small cores stay well conditioned where the plain recurrence of O'Leary (1980) loses its directions to float32 rounding
(on pol at n = 4000 the plain one stagnated where this one converges). Directions that became dependent are dropped.
One iteration is one pass over K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.preconditioner.protocol import Preconditioner
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.small_cores import (
    NotPositiveDefiniteError,
    cholesky_with_inverse,
    product,
    symmetric,
    to_device,
    to_host,
)

# Give up when this many iterations have not halved the largest residual: rounding has taken over. Shorter plateaus are
# the usual start of a hard system.
_PATIENCE = 50
# Columns whose share outside the span of the others is larger than this, in the norm of P^-1, are orthonormalised by a
# Cholesky factor, which costs a tenth of an eigendecomposition; that can drop directions.
_INDEPENDENT = 1e-2
_POWER_STEPS = 4
# Of a K that is positive semi-definite by what it is: how far below its end the spectrum may seem to reach. Directions
# from columns that are nearly dependent are rounded by eps over what is left of them, some per cent in float32; that
# costs iterations, and no certificate rests on it. Of any other K what is seen there is the only evidence.
_ROUNDED_DIRECTIONS = 2.0


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
    preconditioner: Preconditioner,
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
    norms, norm_target, energy_target = to_host(torch.linalg.vector_norm(residual, dim=0), stop_norm, stop_energy)
    if not np.isfinite(norms).all():
        return BlockCGResult(initial, residual, 0, Reason.NOT_FINITE)
    scale = np.where(norms > 0, norms, 1)
    solution, carried = initial.clone(), residual.clone()
    block = _orthonormalise(preconditioner, residual / to_device(scale, residual))
    coefficients = block.coefficients * scale
    shared, preconditioned = block.vectors()
    directions = preconditioned
    best, since_best = float("inf"), 0
    least = preconditioner.least_ritz_value(system)
    largest_inverse = 1 / least if least > 0 else math.inf
    if system.trusted:
        largest_inverse = max(largest_inverse, _ROUNDED_DIRECTIONS)
    iterations = 0
    while True:
        # R = S Phi: norms from the Gram matrix of S, energies from Phi alone.
        norm = np.sqrt(np.maximum((coefficients * product(block.gram, coefficients)).sum(0), 0))
        energy = np.square(coefficients).sum(0)
        # NaN must not look small: the maximum hands it on.
        worst = float(np.maximum(norm / norm_target, np.sqrt(energy / energy_target)).max())
        if worst <= 1:
            correction = preconditioned @ to_device(coefficients, preconditioned)
            return BlockCGResult(solution, carried, iterations, Reason.CONVERGED, correction)
        if not worst < float("inf"):
            return BlockCGResult(solution, carried, iterations, Reason.NOT_FINITE)
        if iterations >= max_passes:
            return BlockCGResult(solution, carried, iterations, Reason.MAX_PASSES)
        if worst < 0.5 * best:
            best, since_best = worst, 0
        else:
            since_best += 1
        if since_best >= _PATIENCE:
            return BlockCGResult(solution, carried, iterations, Reason.STAGNATION)

        image = system.matmul(directions)
        (curvature,) = to_host(directions.mT.double() @ image.double())
        try:
            _, root = cholesky_with_inverse(symmetric(curvature))
        except NotPositiveDefiniteError:
            reason = Reason.NOT_PSD if np.isfinite(curvature).all() else Reason.NOT_FINITE
            return BlockCGResult(solution, carried, iterations, reason)
        k, inverse = len(root), product(root.T, root)
        # The directions D satisfy D'PD >= I, so P <= A makes the curvature D'AD >= I.
        if not _quotient(inverse) <= largest_inverse:
            return BlockCGResult(solution, carried, iterations, Reason.NOT_PSD)
        both = to_device(np.concatenate([product(inverse, coefficients), inverse], axis=1), solution)
        step_sizes, inverse_on_device = both[:, :-k], both[:, -k:]
        solution.addmm_(directions, step_sizes)
        carried.addmm_(image, step_sizes, alpha=-1)
        block = _orthonormalise(preconditioner, torch.addmm(shared, image, inverse_on_device, alpha=-1))
        coefficients = product(block.coefficients, coefficients)
        shared, preconditioned = block.vectors()
        directions = torch.addmm(preconditioned, directions, to_device(block.coefficients.T, directions))
        iterations += 1


def _quotient(matrix: Float64[np.ndarray, "k k"]) -> float:
    """A Rayleigh quotient near the largest eigenvalue of a positive matrix, never above it, by a few power steps from
    the column of its largest diagonal entry. O(k^2)."""
    vector = matrix[:, int(matrix.diagonal().argmax())]
    for _ in range(_POWER_STEPS):
        vector = product(matrix, vector[:, None])[:, 0]
        vector = vector / max(math.sqrt(float((vector * vector).sum())), np.finfo(np.float64).tiny)
    return float((vector * product(matrix, vector[:, None])[:, 0]).sum())


@dataclass(frozen=True)
class _Orthonormalised:
    """A block W = S Phi with S = W T and S' P^-1 S = I, k <= m columns.

    ``coefficients``: Phi; ``gram``: S'S.
    """

    block: Float[Tensor, "n m"]
    preconditioned: Float[Tensor, "n m"]  # P^-1 W
    transform: Float64[np.ndarray, "m k"]
    coefficients: Float64[np.ndarray, "k m"]
    gram: Float64[np.ndarray, "k k"]

    def vectors(self) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """S and P^-1 S."""
        transform = to_device(self.transform, self.block)
        return self.block @ transform, self.preconditioned @ transform


def _orthonormalise(preconditioner: Preconditioner, block: Float[Tensor, "n m"]) -> _Orthonormalised:
    """Dependent columns are dropped."""
    preconditioned = preconditioner.solve(block)
    wide = block.double()
    energy, gram = to_host(wide.mT @ preconditioned.double(), wide.mT @ wide)
    transform, coefficients = _root(symmetric(energy), torch.finfo(block.dtype).eps)
    shared_gram = product(product(transform.T, gram), transform)
    return _Orthonormalised(block, preconditioned, transform, coefficients, shared_gram)


def _root(
    energy: Float64[np.ndarray, "m m"], eps: float
) -> tuple[Float64[np.ndarray, "m k"], Float64[np.ndarray, "k m"]]:
    """T and Phi with T'ET = I and Phi'Phi = E up to what is dropped.

    :param eps: of the vectors whose Gram matrix E is.
    """
    if not np.isfinite(energy).all():
        return np.full_like(energy, math.nan), energy
    scale = np.sqrt(np.maximum(energy.diagonal(), 0))
    if scale.all():
        try:
            factor, inverse = cholesky_with_inverse(energy / scale / scale[:, None])
        except NotPositiveDefiniteError:
            pass
        else:
            if factor.diagonal().min() > _INDEPENDENT:
                return inverse.T / scale[:, None], factor.T * scale
    # In PyTorch's threads, not NumPy's.
    eigenvalues, vectors = (found.numpy() for found in torch.linalg.eigh(torch.from_numpy(energy)))
    # Below this the Gram matrix holds rounding only: of float32 vectors (squared, eps^2) or of float64 sums (eps).
    keep = eigenvalues > max(eps**1.5, 1e-14) * max(eigenvalues[-1], 1e-300)
    roots, vectors = np.sqrt(eigenvalues[keep]), vectors[:, keep]
    return vectors / roots, roots[:, None] * vectors.T
