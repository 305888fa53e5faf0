"""A range that grows, and what it answers in closed form: Galerkin solves, Ritz values, what of A it leaves.

With U (orthonormal, n x k), T = U'AU = L L' and Y = A U L^-T, the approximation Y Y' <= A is A's Nystrom approximation
on span U, and everything follows from blocks of new columns alone. When [U, W] is the new range,

    L21 = W'Y,   L22 L22' = W'AW - L21 L21',   Y2 = (A W - Y L21') L22^-T,

the best solution in the norm of A moves by the part of the residual that W sees: y2 = L22^-1 W' r, r <- r - Y2 y2,
and x = U L^-T y. So a solve costs no product with A beside those that made the range, the error in the norm of A never
grows, and a residual within the range's Krylov space falls as that of block conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

# Relative length below which what is left of a proposed column, the range projected out, is rounding.
_FRESH = 1e-6
# Of the length of a right-hand side.
_ROUNDING = 1e-14
# Of the mean of W'AW: below, a Schur complement is rounding and its directions say nothing new.
_PIVOT = 1e-13


@dataclass
class GrowingRange:
    """A range of a batch of scaled matrices, float64. ``conditional``: the diagonal of A - Y Y'."""

    basis: Float64[Tensor, "b n k"]  # U
    image: Float64[Tensor, "b n k"]  # A U
    core: Float64[Tensor, "b k k"]  # T
    factor: Float64[Tensor, "b k k"]  # L
    root: Float64[Tensor, "b n k"]  # Y
    conditional: Float64[Tensor, "b n"]

    @classmethod
    def empty(cls, diagonal: Float64[Tensor, "b n"]) -> GrowingRange:
        """The range of no columns."""
        b, n = diagonal.shape
        tall, square = diagonal.new_zeros(b, n, 0), diagonal.new_zeros(b, 0, 0)
        return cls(tall, tall, square, square, tall, diagonal)

    @property
    def columns(self) -> int:
        return self.basis.shape[-1]

    def outside(self, block: Float64[Tensor, "b n w"]) -> Float64[Tensor, "b n w"]:
        """(I - U U') block, twice: once leaves the rounding of what was taken away. O(n k w)."""
        for _ in range(2):
            block = block - self.basis @ (self.basis.mT @ block)
        return block

    def fresh(self, block: Float64[Tensor, "b n w"], noise: Float64[Tensor, "b n w"]) -> Float64[Tensor, "b n w"]:
        """W with W'W = I and U'W = 0 whose leading columns span those of ``block`` outside U, to a millionth.

        A column of which nothing is left becomes one of ``noise``: the range grows by w columns whatever is proposed.
        O(n k w + n w^2).
        """
        block = self.outside(_unit(block))
        length = torch.linalg.vector_norm(block, dim=-2, keepdim=True)
        noise = _unit(self.outside(_unit(noise)))
        block = torch.where(length > _FRESH, block / length.clamp_min(_FRESH), noise) + _FRESH * noise
        return _cholesky_qr(self.outside(_cholesky_qr(block)[0]))[0]

    def grow(self, new: Float64[Tensor, "b n w"], image: Float64[Tensor, "b n w"]) -> tuple[GrowingRange, NewColumns]:
        """The range [U, W], given A W. O(n k w + k^2 w)."""
        cross = self.basis.mT @ image
        lower = new.mT @ self.root
        own = new.mT @ image
        own = 0.5 * (own + own.mT)
        schur = own - lower @ lower.mT
        corner, usable = _factor(schur, own)
        root = (image - self.root @ lower.mT) @ _inverse(corner).mT * usable
        columns = NewColumns(new, root, corner, usable)
        b, k, w = cross.shape
        grown = GrowingRange(
            torch.cat([self.basis, new], dim=-1),
            torch.cat([self.image, image], dim=-1),
            torch.cat([torch.cat([self.core, cross], dim=-1), torch.cat([cross.mT, own], dim=-1)], dim=-2),
            torch.cat(
                [torch.cat([self.factor, cross.new_zeros(b, k, w)], dim=-1), torch.cat([lower, corner], dim=-1)],
                dim=-2,
            ),
            torch.cat([self.root, root], dim=-1),
            (self.conditional - root.square().sum(-1)).clamp_min(0),
        )
        return grown, columns

    def ritz(self) -> tuple[Float64[Tensor, "b k"], Float64[Tensor, "b k k"]]:
        """Eigenvalues of T, ascending, and its eigenvectors. O(k^3)."""
        return torch.linalg.eigh(self.core)


@dataclass
class NewColumns:
    """What one growth adds: W, Y2, L22, and whether its factorisation exists (1 or 0 per matrix)."""

    basis: Float64[Tensor, "b n w"]
    root: Float64[Tensor, "b n w"]
    corner: Float64[Tensor, "b w w"]
    usable: Float64[Tensor, "b 1 1"]


@dataclass
class GalerkinSolve:
    """Solutions in a growing range of A x = b, by residual and coefficients: x = U L^-T y."""

    residual: Float64[Tensor, "b n m"]
    coefficients: Float64[Tensor, "b k m"]

    @classmethod
    def start(cls, rhs: Float64[Tensor, "b n m"]) -> GalerkinSolve:
        return cls(rhs, rhs.new_zeros(rhs.shape[0], 0, rhs.shape[-1]))

    def correct(self, new: NewColumns) -> GalerkinSolve:
        """The best solution in the grown range. O(n w m)."""
        inside = _inverse(new.corner) @ (new.basis.mT @ self.residual) * new.usable
        return GalerkinSolve(self.residual - new.root @ inside, torch.cat([self.coefficients, inside], dim=-2))

    def directions(self, aim: Float64[Tensor, "b m"]) -> Float64[Tensor, "b n m"]:
        """Residuals of unit length, zero where only rounding of right-hand sides of length ``aim`` is left."""
        length = torch.linalg.vector_norm(self.residual, dim=-2)
        left = length > _ROUNDING * aim
        inverse = torch.where(left, 1 / length.clamp_min(torch.finfo(length.dtype).tiny), 0.0)
        return self.residual * inverse.unsqueeze(-2)

    def solution(self, grown: GrowingRange) -> Float64[Tensor, "b n m"]:
        """x. O(k^2 m + n k m)."""
        return grown.basis @ torch.linalg.solve_triangular(grown.factor.mT, self.coefficients, upper=True)


def orthonormal(
    block: Float64[Tensor, "b n w"], image: Float64[Tensor, "b n w"]
) -> tuple[Float64[Tensor, "b n w"], Float64[Tensor, "b n w"]]:
    """Orthonormal columns W = block R^-1, and image R^-1: A W without another product where image = A block.

    For columns that are independent, as Gaussian ones are; w <= n. O(n w^2).
    """
    for _ in range(2):
        block, triangle = _cholesky_qr(block)
        image = torch.linalg.solve_triangular(triangle, image, upper=True, left=False)
    return block, image


def _unit(block: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(block, dim=-2, keepdim=True)
    return block / length.clamp_min(torch.finfo(block.dtype).tiny)


def _cholesky_qr(block: Tensor) -> tuple[Tensor, Tensor]:
    gram = block.mT @ block
    jitter = (
        1e-14
        * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    )
    upper = torch.linalg.cholesky(gram + jitter).mT
    return torch.linalg.solve_triangular(upper, block, upper=True, left=False), upper


def _factor(schur: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """A Cholesky factor of ``schur`` and 1, or the identity and 0 where A is not positive definite to rounding."""
    factor, failed = torch.linalg.cholesky_ex(schur)
    least = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    good = (failed == 0) & (least > _PIVOT * own.diagonal(dim1=-2, dim2=-1).mean(-1))
    identity = torch.eye(schur.shape[-1], dtype=schur.dtype, device=schur.device)
    usable = good[:, None, None]
    return torch.where(usable, factor, identity), usable.to(schur.dtype)


def _inverse(lower: Tensor) -> Tensor:
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    return torch.linalg.solve_triangular(lower, identity, upper=False)
