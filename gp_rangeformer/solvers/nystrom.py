"""The preconditioner P = Q + D, where Q is the Nystrom approximation of K from any proposed range.

Q = (K Omega) (Omega' K Omega)^-1 (K Omega)' satisfies Q <= K in the order of positive semi-definite matrices, whatever
Omega is. So P is positive definite, P <= A, log|P| <= log|A|, and r' A^-1 r <= r' P^-1 r: bad proposals only cost time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.solvers.base import LinearSystem
from gp_rangeformer.workspace import empty_matrix


@runtime_checkable
class RangeProposal(Protocol):
    """A subspace to look in. Landmarks implement it without a pass over K; a network's test matrix takes one."""

    def sketch(self, system: LinearSystem) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]:
        """K Omega (n x r) and Omega' K Omega (r x r)."""
        ...


@dataclass(frozen=True)
class ProposedTestMatrix:
    """An arbitrary n x r test matrix Omega, e.g. from a network: one pass over K."""

    omega: Float[Tensor, "n r"]

    def sketch(self, system: LinearSystem) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]:
        product = system.matmul(self.omega) - system.noise.unsqueeze(-1) * self.omega
        return product, self.omega.mT @ product


class PreconditionerError(RuntimeError):
    """The proposed range gave no usable preconditioner (not finite, or K is not positive semi-definite on it)."""


@dataclass(frozen=True)
class NystromPreconditioner:
    """P = D^1/2 (I + V diag(spectrum) V') D^1/2 with orthonormal V: the eigenvectors of D^-1/2 Q D^-1/2.

    ``gap``: the diagonal of D^-1/2 (K - Q) D^-1/2, clamped at zero, for the upper bound of log|A|.
    """

    basis: Float[Tensor, "n r"]
    spectrum: Float[Tensor, " r"]  # float64, descending
    root_noise: Float[Tensor, " n"]
    gap: Float[Tensor, " n"]  # float64

    @property
    def rank(self) -> int:
        return self.spectrum.shape[0]

    def solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """P^-1 rhs. O(n r m)."""
        return self._function(self._unscale(rhs), -self.spectrum / (1 + self.spectrum)).div_(
            self.root_noise.unsqueeze(-1)
        )

    def inverse_factor(self) -> Float[Tensor, "n r"]:
        """U with P^-1 = D^-1 - U U'. O(n r)."""
        weights = (self.spectrum / (1 + self.spectrum)).sqrt().to(self.basis.dtype)
        return self.basis * weights / self.root_noise.unsqueeze(-1)

    def root_solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """C^-1 rhs for the root C = D^1/2 (I + V spectrum V')^1/2 of P = C C'. O(n r m)."""
        return self._function(self._unscale(rhs), (1 + self.spectrum).rsqrt() - 1)

    def root_solve_transposed(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """C^-T rhs. O(n r m)."""
        return self._function(rhs, (1 + self.spectrum).rsqrt() - 1).div_(self.root_noise.unsqueeze(-1))

    def logdet(self) -> float:
        """log|P|, accumulated in float64. O(n + r)."""
        return float(self.spectrum.log1p().sum() + 2 * self.root_noise.double().log().sum())

    def _unscale(self, rhs: Tensor) -> Tensor:
        return rhs / self.root_noise.unsqueeze(-1)

    def _function(self, rhs: Tensor, weights: Tensor) -> Tensor:
        """(I + V diag(weights) V') rhs."""
        inner = (self.basis.mT @ rhs).mul_(weights.to(rhs.dtype).unsqueeze(-1))
        return torch.addmm(rhs, self.basis, inner)


def nystrom_preconditioner(
    system: LinearSystem, proposal: RangeProposal, *, negligible: float = 1e-3
) -> NystromPreconditioner:
    """Build P from a proposed range. O(n r^2 + r^3), n x r memory.

    The r x r cores are float64 also for float32 systems: the Gram matrix of the whitened sketch spans the whole
    condition number of A, and its small end decides log|P|. Directions whose eigenvalue is below ``negligible`` times
    the noise are dropped: they cannot speed up the solver, only cost time.

    :raises PreconditionerError: if the sketch is not finite or its core has a clearly negative eigenvalue.
    """
    columns, core = proposal.sketch(system)
    root_noise = system.noise.sqrt()
    core = core.double()
    core = 0.5 * (core + core.mT)
    # The shift absorbs the rounding of the entries of K. It makes Q smaller, so Q <= K survives.
    core.diagonal().add_(2 * torch.finfo(system.dtype).eps * float(core.diagonal().sum()))
    factor, info = torch.linalg.cholesky_ex(core)
    if bool(info):
        raise PreconditionerError("K is not finite, or not positive semi-definite on the proposed range")
    # Root first, Gram matrix second: the other order multiplies the rounding of the Gram matrix by 1 / (smallest core
    # eigenvalue) and can push log|P| above log|A|.
    n, r = columns.shape
    # Transposed, the columns of a dense K and of the root are neighbours in memory; in place, half a dozen n x r copies
    # are spared, which cost as much as the arithmetic (n = 8000, r = 256: 34 ms with them, 18 without).
    root = empty_matrix(r, n, torch.float64, columns.device).copy_(columns.mT).div_(root_noise.double())
    whitened = root.mT
    torch.linalg.solve_triangular(factor.mT, whitened, upper=True, left=False, out=whitened)
    gram = root @ root.mT
    if not bool(gram.sum().isfinite()):
        raise PreconditionerError("the proposed range or the kernel matrix is not finite")
    spectrum, vectors = torch.linalg.eigh(gram)
    keep = spectrum > negligible
    spectrum, vectors = spectrum[keep].flip(0), vectors[:, keep].flip(1)
    rounded = empty_matrix(r, n, system.dtype, columns.device).copy_(root)
    transform = (vectors * spectrum.rsqrt()).mT.to(system.dtype)
    basis = torch.mm(transform, rounded, out=empty_matrix(len(spectrum), n, system.dtype, columns.device)).mT
    explained = basis.square() @ spectrum.to(basis.dtype)
    gap = (system.diagonal() / system.noise).double() - explained.double()
    rounding = 64 * torch.finfo(system.dtype).eps * float((system.diagonal() / system.noise).abs().max())
    if float(gap.min()) < -max(rounding, 1e-3 * (1 + float(spectrum[0]) if len(spectrum) else 1)):
        raise PreconditionerError("the diagonal of K - Q is negative: K is not positive semi-definite")
    return NystromPreconditioner(basis, spectrum, root_noise, gap.clamp_min(0))
