"""The preconditioner P = Q + D, where Q is the Nystrom approximation of K from any proposed range.

Q = (K Omega) (Omega' K Omega)^-1 (K Omega)' satisfies Q <= K in the order of positive semi-definite matrices, whatever
Omega is. So P is positive definite, P <= A, log|P| <= log|A|, and r' A^-1 r <= r' P^-1 r: bad proposals only cost time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.allocation.workspace import empty_matrix
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.small_cores import to_host, unshared

NEGLIGIBLE = 1e-3  # times the noise: eigenvalues of Q below it cannot speed up the solver, only cost time
# How far below 1 a quotient may fall beside rounding: directions of block CG are conjugate to about a thousandth.
_RITZ_SLACK = 1e-2
_SUBTRACTION = 8  # eps of the largest eigenvalue of D^-1 Q: what applying P^-1 and its root loses there


@runtime_checkable
class RangeProposal(Protocol):
    """A subspace to look in. Landmarks implement it without a pass over K; a network's test matrix takes one."""

    def sketch(self, system: LinearSystem) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]:
        """K Omega (n x r) and Omega' K Omega (r x r)."""
        ...


@dataclass(frozen=True)
class ProposedTestMatrix:
    """An arbitrary n x r test matrix Omega, e.g. from a network: one pass over K, and none where ``image``, A Omega, is
    known."""

    omega: Float[Tensor, "n r"]
    image: Float[Tensor, "n r"] | None = None

    def sketch(self, system: LinearSystem) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]:
        image = system.matmul(self.omega) if self.image is None else self.image
        product = image - system.noise.unsqueeze(-1) * self.omega
        return product, self.omega.mT @ product


class PreconditionerError(RuntimeError):
    """The proposed range gave no usable preconditioner (not finite, or K is not positive semi-definite on it)."""


@dataclass(frozen=True)
class NystromPreconditioner:
    """P = D^1/2 (I + V diag(spectrum) V') D^1/2 with orthonormal V: the eigenvectors of D^-1/2 Q D^-1/2.

    ``shares``: spectrum / (1 + spectrum), of the whitened variance along V what is not noise; ``gap``: the diagonal of
    D^-1/2 (K - Q) D^-1/2, clamped at zero, for the upper bound of log|A|; ``leverage``: the diagonal of
    D^1/2 P^-1 D^1/2; ``facts``: what decisions and bounds ask, on the host.
    """

    basis: Float[Tensor, "n r"]
    spectrum: Float[Tensor, " r"]  # float64, descending
    shares: Float[Tensor, " r"]  # float64
    root_noise: Float[Tensor, " n"]
    gap: Float[Tensor, " n"]  # float64
    leverage: Float[Tensor, " n"]  # float64
    facts: PreconditionerFacts

    @classmethod
    def on_range(
        cls, system: LinearSystem, basis: Float[Tensor, "n r"], spectrum: Float[Tensor, " r"]
    ) -> NystromPreconditioner:
        """With what else is asked of it, for the noise and the diagonal of ``system``. O(n r)."""
        shares = spectrum / (1 + spectrum)
        weights = torch.stack([spectrum, shares])
        # Transposed, as the basis is stored: half the time of the other order.
        explained, covered = (weights.to(basis.dtype) @ basis.mT.square()).double().unbind()
        unclamped = (system.diagonal() / system.noise).double() - explained
        gap = unclamped.clamp_min(0)
        values, *numbers = to_host(spectrum, unclamped.amin(), gap.mean(), gap.log1p().sum())
        least, mean, logs = map(float, numbers)
        facts = PreconditionerFacts(values, least, mean, logs, system.diagonal_facts.log_noise_sum)
        return cls(basis, spectrum, shares, system.noise.sqrt(), gap, 1 - covered, facts)

    @property
    def rank(self) -> int:
        return self.spectrum.shape[0]

    @functools.cached_property
    def _solve_weights(self) -> Tensor:
        return -self.shares.to(self.basis.dtype).unsqueeze(-1)

    @functools.cached_property
    def _root_weights(self) -> Tensor:
        return ((1 + self.spectrum).rsqrt() - 1).to(self.basis.dtype).unsqueeze(-1)

    def solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """P^-1 rhs. O(n r m)."""
        return self._function(self._unscale(rhs), self._solve_weights).div_(self.root_noise.unsqueeze(-1))

    def inverse_factor(self) -> Float[Tensor, "n r"]:
        """U with P^-1 = D^-1 - U U'. O(n r)."""
        weights = self.shares.sqrt().to(self.basis.dtype)
        return self.basis * weights / self.root_noise.unsqueeze(-1)

    def root_solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """C^-1 rhs for the root C = D^1/2 (I + V spectrum V')^1/2 of P = C C'. O(n r m)."""
        return self._function(self._unscale(rhs), self._root_weights)

    def root_solve_transposed(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """C^-T rhs. O(n r m)."""
        return self._function(rhs, self._root_weights).div_(self.root_noise.unsqueeze(-1))

    def logdet(self) -> float:
        """log|P|, accumulated in float64. O(r)."""
        return float(np.log1p(self.facts.spectrum).sum()) + self.facts.log_noise_sum

    def low_rank_rows(self, chosen: Int[Tensor, " b"], count: int) -> Float64[Tensor, "c b"]:
        """The first ``count`` rows of D^-1/2 Q D^-1/2 on some points. O(c b r)."""
        basis = self.basis[chosen].double()
        return (basis * self.spectrum)[:count] @ basis.mT

    def seen(
        self, system: LinearSystem, whitened: Float[Tensor, "n k"], chosen: Int[Tensor, " b"]
    ) -> Callable[[], list[Tensor]]:
        """Gives, on the CPU in float64: the squares of V'w, r x k; the diagonals of I + D^-1/2 (K - Q) D^-1/2, of
        D^-1/2 A D^-1/2 and of D^-1/2 P D^-1/2 at some points, 3 x b; ``gap`` and ``leverage``. O(n r k)."""
        basis, noise = self.basis[chosen].double(), system.noise[chosen].double()
        explained = torch.linalg.vecdot(basis * self.spectrum, basis)
        diagonals = torch.stack([self.gap[chosen], system.diagonal()[chosen].double() / noise, explained]).add_(1)
        return system.ask((self.basis.mT @ whitened).double().square_(), diagonals, self.gap, self.leverage)

    def least_ritz_value(self, system: LinearSystem) -> float:
        """Below this a Ritz value of P^-1 A disproves P <= A, hence that K is positive semi-definite.

        Every one is 1 or more but for rounding: of a product with A, relative to the smallest noise, and of P^-1, which
        subtracts all but 1 / (1 + spectrum) of a vector. Never above 0.99, nor below 0.5.
        """
        facts, eps = system.diagonal_facts, torch.finfo(system.dtype).eps
        largest = float(self.facts.spectrum[0]) if len(self.facts.spectrum) else 0.0
        rounding = system.rounding_scale / facts.smallest_noise + _SUBTRACTION * eps * largest
        return max(0.5, 1 - _RITZ_SLACK - rounding)

    def doubt(self, system: LinearSystem) -> float:
        """t such that P <= (1 + t) A is all that is known: 0 for a K that is known to be positive semi-definite, else
        what Ritz values would not have shown."""
        return 0.0 if system.trusted else 1 / self.least_ritz_value(system) - 1

    def _unscale(self, rhs: Tensor) -> Tensor:
        return rhs / self.root_noise.unsqueeze(-1)

    def _function(self, rhs: Tensor, weights: Tensor) -> Tensor:
        """(I + V diag(weights) V') rhs."""
        return torch.addmm(rhs, self.basis, (self.basis.mT @ rhs).mul_(weights))


@dataclass(frozen=True)
class PreconditionerFacts:
    """The spectrum of D^-1/2 Q D^-1/2, descending; the smallest gap before it was clamped, the mean of the gap, the sum
    of log(1 + gap) over all points; log|D|."""

    spectrum: Float64[np.ndarray, " r"]
    least_gap: float
    mean_gap: float
    log_gap_sum: float
    log_noise_sum: float

    def plausible(self, system: LinearSystem) -> bool:
        """Whether no gap is clearly negative, as where K is not positive semi-definite."""
        rounding = 64 * torch.finfo(system.dtype).eps * system.diagonal_facts.largest_ratio
        largest = self.spectrum[0] if len(self.spectrum) else 0
        return not self.least_gap < -max(rounding, 1e-3 * (1 + largest))


def nystrom_preconditioner(
    system: LinearSystem, proposal: RangeProposal, *, negligible: float = NEGLIGIBLE
) -> NystromPreconditioner:
    """Build P from a proposed range. O(n r^2 + r^3), n x r memory.

    The r x r cores are float64 also for float32 systems: the Gram matrix of the whitened sketch spans the whole
    condition number of A, and its small end decides log|P|. Directions whose eigenvalue is below ``negligible`` times
    the noise are dropped.

    :raises PreconditionerError: if the sketch is not finite or its core has a clearly negative eigenvalue.
    """
    columns, core = proposal.sketch(system)
    core = core.double()
    core = 0.5 * (core + core.mT)
    # The shift absorbs the rounding of the entries of K. It makes Q smaller, so Q <= K survives.
    core.diagonal().add_(core.diagonal().sum(), alpha=2 * torch.finfo(system.dtype).eps)
    factor, info = torch.linalg.cholesky_ex(core)
    # Root first, Gram matrix second: the other order multiplies the rounding of the Gram matrix by 1 / (smallest core
    # eigenvalue) and can push log|P| above log|A|.
    n, r = columns.shape
    # Transposed, the columns of a dense K and of the root are neighbours in memory; in place, half a dozen n x r copies
    # are spared, which cost as much as the arithmetic (n = 8000, r = 256: 34 ms with them, 18 without).
    root = empty_matrix(r, n, torch.float64, columns.device).copy_(columns.mT).div_(system.noise.sqrt().double())
    whitened = root.mT
    torch.linalg.solve_triangular(factor.mT, whitened, upper=True, left=False, out=whitened)
    gram = root @ root.mT
    failed, total = to_host(info, gram.sum())
    if failed:
        raise PreconditionerError("K is not finite, or not positive semi-definite on the proposed range")
    if not np.isfinite(total):
        raise PreconditionerError("the proposed range or the kernel matrix is not finite")
    with unshared(gram):
        ascending, vectors = torch.linalg.eigh(gram)
    (values,) = to_host(ascending)
    preconditioner = of_eigenvectors(system, root, ascending, vectors, int((values > negligible).sum()))
    if not preconditioner.facts.plausible(system):
        raise PreconditionerError("the diagonal of K - Q is negative: K is not positive semi-definite")
    return preconditioner


def of_eigenvectors(
    system: LinearSystem,
    root: Float64[Tensor, "r n"],
    ascending: Float64[Tensor, " r"],
    vectors: Float64[Tensor, "r r"],
    kept: int,
) -> NystromPreconditioner:
    """P for D^-1/2 Q D^-1/2 = root' root, from the ``kept`` largest eigenvalues of root root' and their vectors.
    O(n r^2)."""
    r, n = root.shape
    spectrum, vectors = ascending[r - kept :].flip(0), vectors[:, r - kept :].flip(1)
    rounded = empty_matrix(r, n, system.dtype, root.device).copy_(root)
    transform = (vectors * spectrum.rsqrt()).mT.to(system.dtype)
    basis = torch.mm(transform, rounded, out=empty_matrix(kept, n, system.dtype, root.device)).mT
    return NystromPreconditioner.on_range(system, basis, spectrum)
