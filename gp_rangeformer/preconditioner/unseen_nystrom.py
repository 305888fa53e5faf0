"""The same preconditioner on an accelerator, built without a look at any number.

Two Cholesky factorisations take the place of an eigendecomposition, which waits for the device. Of the sketch K Omega
and Omega' K Omega = L L', R = L^-1 (K Omega)' D^-1/2 gives D^-1/2 Q D^-1/2 = R'R, and with C C' = I + R R' and
U = D^-1/2 R' C^-T the inverse P^-1 = D^-1 - U U'.
What certificates ask of the spectrum the host finds from the r x r matrix R R' when it reads the rest of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.preconditioner.nystrom import (
    NEGLIGIBLE,
    NystromPreconditioner,
    PreconditionerError,
    PreconditionerFacts,
    RangeProposal,
    of_eigenvectors,
)
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.small_cores import unshared

_ON_HOST = 256  # rows of a matrix whose eigenvectors the host finds about as fast as a device


class UnseenNystrom(NystromPreconditioner):
    """As :class:`~gp_rangeformer.preconditioner.nystrom.NystromPreconditioner`, with ``failure`` to be asked before
    anything is believed. What needs orthonormal vectors (roots, Lanczos) finds them in ``eigen``, made when first
    asked. O(n r^2 + r^3), n x r memory."""

    _system: LinearSystem
    _root: Float64[Tensor, "r n"]  # R
    _inverse: Float[Tensor, "n r"]  # U
    _answer: Callable[[], list[Tensor]]  # I + R R', whether L was found, norms of the columns of R and of C^-1 R

    def __init__(self, system: LinearSystem, proposal: RangeProposal) -> None:
        columns, core = proposal.sketch(system)
        core = core.double()
        # The shift absorbs the rounding of the entries of K. It makes Q smaller, so Q <= K survives.
        core.diagonal().add_(core.diagonal().sum(), alpha=2 * torch.finfo(system.dtype).eps)
        factor, info = torch.linalg.cholesky_ex(core)
        root_noise = system.noise.sqrt()
        root = torch.linalg.solve_triangular(factor, columns.mT.double().div_(root_noise), upper=False)
        shifted = root @ root.mT
        shifted.diagonal().add_(1)
        inner, _ = torch.linalg.cholesky_ex(shifted)
        covering = torch.linalg.solve_triangular(inner, root, upper=False)
        inverse = torch.div(covering, root_noise, out=root_noise.new_empty(covering.shape)).mT
        norms = (torch.linalg.vector_norm(part, dim=0) for part in (root, covering))
        answer = system.ask(shifted, info, *norms)
        # A frozen dataclass, whose fields are found here instead of given.
        self.__dict__.update(_system=system, _root=root, _inverse=inverse, _answer=answer, root_noise=root_noise)

    @property
    def rank(self) -> int:
        return len(self._root)

    @functools.cached_property
    def failure(self) -> Reason | None:
        """What is wrong with it, on a look."""
        # Asked first: the diagonals come with everything else.
        if not self._system.diagonal_facts.smallest_noise > 0:
            return Reason.ZERO_NOISE
        try:
            return None if self.facts.plausible(self._system) else Reason.NOT_PSD
        except PreconditionerError:
            return Reason.NOT_PSD

    @functools.cached_property
    def _decomposition(self) -> tuple[Float64[Tensor, " r"], Float64[Tensor, "r r"]]:
        """Of R R', on the CPU.

        :raises PreconditionerError: K is not finite, or not positive semi-definite on the proposed range: the factors
            are not finite, either.
        """
        shifted, info, *_ = self._answer()
        if bool(info) or not bool(shifted.isfinite().all()):
            raise PreconditionerError("K is not finite, or not positive semi-definite on the proposed range")
        # Of large ones a device finds the vectors sooner, though the host has to wait.
        with unshared(shifted):
            values, vectors = torch.linalg.eigh(shifted if len(shifted) <= _ON_HOST else shifted.to(self._root.device))
        return values.cpu() - 1, vectors.cpu()

    @functools.cached_property
    def _unclamped(self) -> Float64[Tensor, " n"]:
        _, _, explained, _ = self._answer()
        kernel, noise = self._system.diagonals()
        return (kernel / noise).double() - explained.square()

    @functools.cached_property
    def facts(self) -> PreconditionerFacts:
        values, _ = self._decomposition
        spectrum = values[values > NEGLIGIBLE].flip(0).numpy()
        least, gap = float(self._unclamped.amin()), self._unclamped.clamp_min(0)
        noise = self._system.diagonal_facts.log_noise_sum
        return PreconditionerFacts(spectrum, least, float(gap.mean()), float(gap.log1p().sum()), noise)

    @functools.cached_property
    def eigen(self) -> NystromPreconditioner:
        """With orthonormal vectors. O(n r^2)."""
        values, vectors = self._decomposition
        kept, there = int((values > NEGLIGIBLE).sum()), self._root.device
        return of_eigenvectors(self._system, self._root, values.to(there), vectors.to(there), kept)

    def solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        whole = rhs / self._system.noise.unsqueeze(-1)
        return torch.addmm(whole, self._inverse, self._inverse.mT @ rhs, alpha=-1)

    def inverse_factor(self) -> Float[Tensor, "n r"]:
        return self._inverse

    def low_rank_rows(self, chosen: Int[Tensor, " b"], count: int) -> Float64[Tensor, "c b"]:
        rows = self._root.index_select(1, chosen)
        return rows[:, :count].mT @ rows

    def seen(
        self, system: LinearSystem, whitened: Float[Tensor, "n k"], chosen: Int[Tensor, " b"]
    ) -> Callable[[], list[Tensor]]:
        answer = system.ask(self._root.to(whitened.dtype) @ whitened, chosen)

        def found() -> list[Tensor]:
            products, points = answer()
            values, vectors = self._decomposition
            kept = values > NEGLIGIBLE
            rotated = vectors[:, kept].flip(1).mT @ products.double()
            squares = rotated.square_() / values[kept].flip(0).unsqueeze(-1)
            gap = self._unclamped.clamp_min(0)
            kernel, noise = (part[points].double() for part in system.diagonals())
            _, _, explained, covered = self._answer()
            diagonals = torch.stack([gap[points], kernel / noise, explained[points].square()]).add_(1)
            return [squares, diagonals, gap, 1 - covered.square()]

        return found

    def root_solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return self.eigen.root_solve(rhs)

    def root_solve_transposed(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return self.eigen.root_solve_transposed(rhs)

    @property
    def basis(self) -> Float[Tensor, "n r"]:
        return self.eigen.basis

    @property
    def spectrum(self) -> Float[Tensor, " r"]:
        return self.eigen.spectrum

    @property
    def shares(self) -> Float[Tensor, " r"]:
        return self.eigen.shares

    @property
    def gap(self) -> Float64[Tensor, " n"]:
        return self.eigen.gap

    @property
    def leverage(self) -> Float64[Tensor, " n"]:
        return self.eigen.leverage
