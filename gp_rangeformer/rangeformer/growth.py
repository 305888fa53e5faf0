"""The state of the loop but for its tokens: a range that grows by blocks of columns, and the solves in it.

Columns are proposed by right-hand sides that are not solved, by their residuals with every row divided by A's diagonal
(Jacobi's preconditioner: what rows of different sizes need), and where those leave room by A's image of the last
columns that were not theirs, so that the range holds a block Krylov space of the first columns too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from gp_rangeformer.rangeformer.embedding import Embedded
from gp_rangeformer.rangeformer.operator import MatrixOperator
from gp_rangeformer.rangeformer.subspace import GalerkinSolve, GrowingRange, orthonormal


@dataclass
class Growth:
    """Of A / scale, float64. ``most``: columns that the range may have."""

    operator: MatrixOperator
    scale: Float64[Tensor, " b"]
    diagonal: Float64[Tensor, "b n"]
    codes: Float64[Tensor, "b n d"]
    most: int
    range: GrowingRange = field(init=False)
    solve: GalerkinSolve | None = field(init=False, default=None)
    rhs: Float64[Tensor, "b n m"] | None = field(init=False, default=None)  # each over its largest entry
    unit: Float64[Tensor, "b m"] | None = field(init=False, default=None)  # those entries
    lengths: Float64[Tensor, "b m"] | None = field(init=False, default=None)  # of ``rhs``
    pool: Float64[Tensor, "b n w"] = field(init=False)  # where the Krylov space goes on
    noise_drawn: int = field(init=False, default=0)

    @classmethod
    def start(
        cls,
        operator: MatrixOperator,
        embedded: Embedded,
        rhs: Float[Tensor, "b n m"] | None,
        most: int,
    ) -> Growth:
        """The range of the embedding's columns, whose image is known: no product. O(n d^2)."""
        scale = embedded.scale
        diagonal = operator.diagonal().double() / scale[:, None]
        codes = embedded.projection.double()
        growth = cls(operator, scale, diagonal, codes, most)
        first, image = orthonormal(codes[..., :most], embedded.image[..., :most])
        growth.range, new = GrowingRange.empty(diagonal).grow(first, image)
        growth.pool = image
        if rhs is not None:
            # Squares of entries near 1 neither overflow nor vanish.
            peak = rhs.double().abs().amax(-2)
            growth.unit = torch.where(peak > 0, peak, 1.0)
            growth.rhs = rhs.double() / growth.unit.unsqueeze(-2)
            growth.solve = GalerkinSolve.start(growth.rhs).correct(new)
            growth.lengths = torch.linalg.vector_norm(growth.rhs, dim=-2)
        return growth

    @property
    def ended(self) -> bool:
        return self.range.columns == self.most

    def unsolved(self, tolerance: float | None) -> Bool[Tensor, " m"]:
        """Which right-hand sides, of any matrix, have a relative residual above ``tolerance``; all for None."""
        if self.solve is None or self.lengths is None:
            return torch.zeros(0, dtype=torch.bool, device=self.diagonal.device)
        if tolerance is None:
            return torch.ones(self.lengths.shape[-1], dtype=torch.bool, device=self.lengths.device)
        return (torch.linalg.vector_norm(self.solve.residual, dim=-2) > tolerance * self.lengths).any(0)

    def directions(self, which: Bool[Tensor, " m"]) -> Float64[Tensor, "b n c"]:
        """Residuals of unit length of some right-hand sides, divided by the diagonal; no columns without any."""
        if self.solve is None or self.lengths is None:
            return self.diagonal.new_zeros(*self.diagonal.shape, 0)
        # Where a row of a singular matrix is zero the diagonal preconditions nothing.
        usable = (self.diagonal > 0).all(-1, keepdim=True)
        return self.solve.directions(self.lengths)[..., which] / torch.where(usable, self.diagonal, 1.0).unsqueeze(-1)

    def add(self, proposals: Float64[Tensor, "b n p"], width: int) -> None:
        """The range with ``proposals`` and what fills them up to ``width`` columns. One product; O(n k width)."""
        asked = proposals.shape[-1]
        further = _leading(self.range.outside(self.pool), width - asked)
        block = torch.cat([proposals, further], dim=-1)[..., : self.most - self.range.columns]
        if not block.shape[-1]:
            return
        block = self.range.fresh(block, self._noise(block.shape[-1]))
        image = self.operator.matmul(block) / self.scale[:, None, None]
        self.range, new = self.range.grow(block, image)
        self.pool = image[..., asked:]
        if self.solve is not None:
            self.solve = self.solve.correct(new)

    def solution(self) -> Float64[Tensor, "b n m"]:
        """Of A x = the right-hand sides that there were, in the units of both."""
        assert self.solve is not None
        assert self.unit is not None
        return self.solve.solution(self.range) * (self.unit / self.scale[:, None]).unsqueeze(-2)

    def residual(self) -> Float64[Tensor, "b n m"]:
        """What :meth:`solution` leaves of the right-hand sides, by recurrence."""
        assert self.solve is not None
        assert self.unit is not None
        return self.solve.residual * self.unit.unsqueeze(-2)

    def row_features(self) -> Float64[Tensor, "b n 4"]:
        """Per row: the logarithm of A's diagonal, the share of the row that lies in the range, the logarithm of the
        share of the diagonal that A has beyond the range; and k / n."""
        n, k = self.range.basis.shape[-2:]
        share = self.range.basis.square().sum(-1)
        entry = self.diagonal.abs().clamp_min(1e-12)
        left = (self.range.conditional / entry).clamp_min(1e-9).log()
        return torch.stack([0.2 * entry.log(), share, 0.2 * left, torch.full_like(share, k / n)], dim=-1)

    def _noise(self, count: int) -> Float64[Tensor, "b n count"]:
        """Sines of ever higher frequency of the Gaussian codes: to rounding independent of the codes and of each other,
        and permuted as they are."""
        places = torch.arange(self.noise_drawn, self.noise_drawn + count, device=self.codes.device)
        self.noise_drawn += count
        return torch.sin((2.0 + places) * self.codes[..., places % self.codes.shape[-1]])


def _leading(pool: Float64[Tensor, "b n w"], count: int) -> Float64[Tensor, "b n c"]:
    """The at most ``count`` principal directions of the columns. O(n w^2)."""
    if count <= 0:
        return pool[..., :0]
    if pool.shape[-1] <= count:
        return pool
    _, rotation = torch.linalg.eigh(pool.mT @ pool)
    return pool @ rotation.flip(-1)[..., :count]
