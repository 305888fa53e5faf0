"""The probes of one training step: the right-hand sides that the gradient of log|A| is estimated from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.sparse_rows import SparsePattern
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.solvers.gradient_weight import GradientWeight, WhitenedWeight


@dataclass(frozen=True)
class Probes:
    """Rademacher vectors z (``signs``), plain or whitened by a Vecchia preconditioner P^-1 = W'W.

    ``rhs``: z, or W^-1 z; ``near``: None, or W'z, which nearly solves A x = W^-1 z; ``image``: A W'z.
    """

    signs: Float[Tensor, "n p"]
    rhs: Float[Tensor, "n p"]
    near: Float[Tensor, "n p"] | None = None
    vecchia: VecchiaPreconditioner | None = None
    image: Float[Tensor, "n p"] | None = None

    @classmethod
    def whitened(cls, signs: Float[Tensor, "n p"], vecchia: VecchiaPreconditioner) -> Probes:
        """4 n (r + k) p flops, half of them row after row."""
        return cls(signs, vecchia.root_multiply(signs), vecchia.root_solve_transposed(signs), vecchia)

    def imaged(self, system: LinearSystem) -> Probes:
        """With the image of what is near. One pass over K, for whitened ones."""
        return self if self.near is None else replace(self, image=system.matmul(self.near))

    @property
    def pattern(self) -> SparsePattern | None:
        """Whose rows whiten them; what stays while W changes a little, and solutions with it."""
        return None if self.vecchia is None else self.vecchia.pattern

    def near_block(self, columns: int) -> Float[Tensor, "n m"] | None:
        """``near`` behind so many columns of zeros, for right-hand sides that nothing is known of."""
        if self.near is None:
            return None
        return torch.cat([self.near.new_zeros(len(self.near), columns), self.near], dim=1)

    def joined(self, further: Probes) -> Probes:
        """Both, of one kind."""

        def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
            return None if one is None or other is None else torch.cat([one, other], dim=1)

        signs, rhs = torch.cat([self.signs, further.signs], dim=1), torch.cat([self.rhs, further.rhs], dim=1)
        return Probes(signs, rhs, both(self.near, further.near), self.vecchia, both(self.image, further.image))

    def inverse_trace(self, solutions: Float[Tensor, "n p"], quadratic: Float64[Tensor, " p"]) -> float:
        """An estimate of tr(A^-1), from ``solutions`` of A X = rhs and their quadratic forms: z'A^-1 z, or
        z'W W'(W A W')^-1 z."""
        if self.near is None:
            return float(quadratic.mean())
        count = len(quadratic)
        return float((self.near[:, :count] * solutions).sum(dtype=torch.float64)) / count

    def weight(
        self,
        preconditioner: NystromPreconditioner,
        noise: Float[Tensor, " n"],
        solutions: Float[Tensor, "n m"],
        probe_solutions: Float[Tensor, "n p"],
    ) -> GradientWeight:
        """Of ``solutions`` for targets and ``probe_solutions`` for these."""
        if self.vecchia is None or self.near is None or self.image is None:
            return GradientWeight.build(preconditioner, noise, solutions, self.rhs, probe_solutions)
        left = probe_solutions - self.near
        excess = (self.near * self.image).sum(0, dtype=torch.float64) / len(noise) - 1
        return WhitenedWeight.of_vecchia(self.vecchia, noise, solutions, self.near, left, excess.to(noise.dtype))


_LOOKED_AT = 16  # vectors that say how a factor and products with them are rounded
# Of the variance of an observation: what rounding may add to a variance, a tenth of an estimate's standard error.
_BIAS = 1e-3
_WIDE_AT_ONCE = 128  # columns of a product in float64


@dataclass(frozen=True)
class InversePairs:
    """Vectors u_s and v_s such that the mean of u_s v_s' over the choice of probes z is A^-1, all u before all v.

    W'z and A^-1 W^-1 z of whitened probes, or both L^-T z of a factor L, which are then held once. ``images``: A times
    them, as they are, whatever the tolerance that v was solved to.
    """

    vectors: Float[Tensor, "n s2"]
    images: Float[Tensor, "n s2"]
    alike: bool = False  # whether every v is its u
    wide: bool = False  # whether products with them are to be summed in float64: else rounding would be counted as gain

    @classmethod
    def of_factor(
        cls,
        system: LinearSystem,
        factor: Float[Tensor, "n n"],
        signs: Float[Tensor, "n s"],
        tolerance: float,
        variance: float,
    ) -> InversePairs | None:
        """Of A = L L', a pair for every column of ``signs``; None where the factor is no better than rounding. One pass
        over K, and half of its flops; a pass in float64 where ``wide``.

        :param tolerance: largest |L^-1 A L^-T z - z| / |z|, root mean square of a few z.
        :param variance: of an observation, of which rounding may add a thousandth.
        """
        vectors = torch.linalg.solve_triangular(factor.mT, signs.to(factor.dtype), upper=True).to(signs.dtype)
        few = vectors[:, :_LOOKED_AT]
        exact = system.wide_matmul(few.double())
        back = torch.linalg.solve_triangular(factor, exact.to(factor.dtype), upper=False)
        left = float((back.double() - signs[:, :_LOOKED_AT].double()).square().mean().sqrt())
        if not left <= tolerance:
            return None
        lost = float((system.matmul(few).double() - exact).square().mean())
        # Twice: of products with u as well. Squares do not average that out.
        wide = not 2 * lost <= _BIAS * variance
        if wide:
            pieces = [piece.double() for piece in vectors.split(_WIDE_AT_ONCE, dim=1)]
            images = torch.cat([system.wide_matmul(piece).to(signs.dtype) for piece in pieces], dim=1)
        else:
            images = system.matmul(vectors)
        return cls(vectors, images, alike=True, wide=wide)

    def quadratic_forms(self, products: Float[Tensor, "t s2"]) -> tuple[Float64[Tensor, " t"], Float64[Tensor, " t"]]:
        """Estimates of r' A^-1 r, at least 0, and their standard errors, from products of t vectors r with
        ``vectors``."""
        wide = products.double()
        left, right = (wide, wide) if self.alike else wide.chunk(2, dim=1)
        terms = left * right
        return terms.mean(1).clamp_min(0), terms.std(1) / terms.shape[1] ** 0.5
