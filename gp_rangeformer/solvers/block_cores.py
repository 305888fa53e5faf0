"""The small cores of block conjugate gradients: on the host, where a CPU's LAPACK is, or beside their blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.system import device_cores
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.small_cores import (
    NotPositiveDefiniteError,
    cholesky_with_inverse,
    product,
    symmetric,
    to_device,
    to_host,
)

# Columns whose share outside the span of the others is larger than this, in the norm of P^-1, are orthonormalised by a
# Cholesky factor, which costs a tenth of an eigendecomposition; that can drop directions.
_INDEPENDENT = 1e-2

Pair = tuple[Tensor, Tensor]


class HostCores:
    """In NumPy. Every question is answered at once; a GPU waits for each.

    :param residual: the first block.
    :param stop_norm: |r| to reach, per column; ``stop_energy``: r'P^-1 r.
    :param largest_inverse: of a Ritz value that contradicts nothing.
    """

    def __init__(self, residual: Tensor, stop_norm: Tensor, stop_energy: Tensor, largest_inverse: float) -> None:
        norms, self._norm_target, self._energy_target = to_host(
            torch.linalg.vector_norm(residual, dim=0), stop_norm, stop_energy
        )
        self._largest_inverse = largest_inverse
        self._failure = None if np.isfinite(norms).all() else Reason.NOT_FINITE
        self._scale = np.where(norms > 0, norms, 1)
        self._coefficients: NDArray[np.float64] | None = None
        self._iterations, self._worst = 0, math.inf

    def scaled(self, residual: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """The first block in columns of unit norm."""
        return residual / to_device(self._scale, residual)

    def look(self) -> tuple[int, float, Reason | None]:
        """Iterations; the largest share of its target that a column has left; why there is no way on, or None."""
        return self._iterations, self._worst, self._failure

    def correction_coefficients(self) -> Float64[Tensor, "k m"]:
        """Phi of R = S Phi."""
        assert self._coefficients is not None
        return torch.from_numpy(self._coefficients)

    def conjugate(self, directions: Float[Tensor, "n k"], image: Float[Tensor, "n k"]) -> Pair | None:
        """C^-1 Phi and C^-1 of the curvature C = directions' image; None where it is not positive definite."""
        assert self._coefficients is not None
        (curvature,) = to_host(directions.mT.double() @ image.double())
        try:
            _, root = cholesky_with_inverse(symmetric(curvature))
        except NotPositiveDefiniteError:
            self._failure = Reason.NOT_PSD if np.isfinite(curvature).all() else Reason.NOT_FINITE
            return None
        inverse = product(root.T, root)
        # The directions D satisfy D'PD >= I, so P <= A makes the curvature D'AD >= I.
        if not _quotient(inverse) <= self._largest_inverse:
            self._failure = Reason.NOT_PSD
            return None
        self._iterations += 1
        both = to_device(np.concatenate([product(inverse, self._coefficients), inverse], axis=1), directions)
        return both[:, : -len(root)], both[:, -len(root) :]

    def orthonormalise(self, block: Float[Tensor, "n m"], preconditioned: Float[Tensor, "n m"]) -> Pair:
        """T and Phi' with S = W T, S'P^-1 S = I and W = S Phi; dependent columns are dropped.

        :param preconditioned: P^-1 W.
        """
        wide = block.double()
        energy, gram = to_host(wide.mT @ preconditioned.double(), wide.mT @ wide)
        transform, root = _root(symmetric(energy), torch.finfo(block.dtype).eps)
        own = root * self._scale if self._coefficients is None else product(root, self._coefficients)
        self._coefficients = own
        # R = S Phi: norms from the Gram matrix of S, energies from Phi alone.
        shared = product(product(transform.T, gram), transform)
        norm = np.sqrt(np.maximum((own * product(shared, own)).sum(0), 0))
        # NaN must not look small: the maximum hands it on.
        shares = np.maximum(norm / self._norm_target, np.sqrt(np.square(own).sum(0) / self._energy_target))
        self._worst = float(shares.max())
        return to_device(transform, block), to_device(root.T, block)


class DeviceCores:
    """The same where the block is. Nothing is read until somebody looks.

    :param norm: what |r| is measured by, per column; ``shares``: of it to reach, and of 1 for (r'P^-1 r)^1/2.
    """

    def __init__(
        self,
        residual: Tensor,
        norm: Float[Tensor, " m"],
        shares: Float64[Tensor, "2 m"],
        largest_inverse: Callable[[], float],
    ) -> None:
        self._largest_inverse, self._norm, self._shares = largest_inverse, norm, shares
        self.status = device_cores.new_status(residual)
        self._coefficients = torch.eye(residual.shape[1], dtype=torch.float64, device=residual.device)

    @classmethod
    def of_targets(
        cls, residual: Tensor, stop_norm: Tensor, stop_energy: Tensor, largest_inverse: Callable[[], float]
    ) -> DeviceCores:
        """As :class:`HostCores`."""
        shares = torch.stack([torch.ones_like(stop_energy, dtype=torch.float64), stop_energy.double().sqrt()])
        return cls(residual, stop_norm.to(residual), shares.to(residual.device), largest_inverse)

    def scaled(self, residual: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return residual

    def look(self) -> tuple[int, float, Reason | None]:
        return self.read(*to_host(self.status))

    def read(self, status: Float64[np.ndarray, " four"]) -> tuple[int, float, Reason | None]:
        """The same of a ``status`` that came over with other numbers."""
        reached, iterations, failure, quotient = status.tolist()
        worst = 1 / reached if reached > 0 else math.inf
        reason = None
        if failure:
            reason = Reason.NOT_PSD if failure == device_cores.NOT_PSD else Reason.NOT_FINITE
        elif not quotient <= self._largest_inverse():
            reason = Reason.NOT_PSD
        return int(iterations), worst, reason

    def correction_coefficients(self) -> Float64[Tensor, "m m"]:
        return self._coefficients

    def conjugate(self, directions: Float[Tensor, "n m"], image: Float[Tensor, "n m"]) -> Pair:
        curvature = device_cores.wide_gram(directions, [image])
        both = device_cores.conjugate(curvature, self._coefficients, self.status, image.dtype)
        return both[:, : image.shape[1]], both[:, image.shape[1] :]

    def orthonormalise(self, block: Float[Tensor, "n m"], preconditioned: Float[Tensor, "n m"]) -> Pair:
        m = block.shape[1]
        products = device_cores.wide_gram(block, [block, preconditioned])
        found = device_cores.orthonormalise(
            products, self._coefficients, self._norm, self._shares, self.status, block.dtype
        )
        return found[:, :m], found[:, m:]


def cores_of(
    residual: Tensor, stop_norm: Tensor, stop_energy: Tensor, largest_inverse: Callable[[], float]
) -> HostCores | DeviceCores:
    """Beside their block where that is possible."""
    if residual.device.type != "cpu" and device_cores.resident(residual):
        return DeviceCores.of_targets(residual, stop_norm, stop_energy, largest_inverse)
    return HostCores(residual, stop_norm, stop_energy, largest_inverse())


def _quotient(matrix: Float64[np.ndarray, "k k"]) -> float:
    """A Rayleigh quotient near the largest eigenvalue of a positive matrix, never above it, by a few power steps from
    the column of its largest diagonal entry. O(k^2)."""
    vector = matrix[:, int(matrix.diagonal().argmax())]
    for _ in range(device_cores.POWER_STEPS):
        vector = product(matrix, vector[:, None])[:, 0]
        vector = vector / max(math.sqrt(float((vector * vector).sum())), np.finfo(np.float64).tiny)
    return float((vector * product(matrix, vector[:, None])[:, 0]).sum())


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
