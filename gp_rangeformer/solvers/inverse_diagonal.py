"""The diagonal of A^-1: what leave-one-out asks. 1 / (A^-1)_ii is the variance of y_i given all other targets.

Exactly, from the factor; or as :mod:`~gp_rangeformer.solvers.estimated_variances` does it: with weights w of a point's
neighbours among the others and v the variance that they leave, x = (e_i - w) / v and r = e_i - A x,

    e_i' A^-1 e_i = 1 / v + r' A^-1 r,

whose last term is estimated from the same pairs of vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.native.neighbours import MOST_NEIGHBOURS
from gp_rangeformer.kernels.tiles import spans
from gp_rangeformer.preconditioner.further_points import ConditionalImages, condition_each
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.solvers.probes import InversePairs

_FEWEST, _SAMPLE, _AT_ONCE = 32, 256, 4096
_COLUMNS = 512  # of the inverse factor at a time


@dataclass(frozen=True)
class InverseDiagonal:
    """(A^-1)_ii and its standard error over the choice of probes (0 of exact ones), n each; ``neighbours``: how many
    others each point was conditioned on, if estimated."""

    value: Float64[Tensor, " n"]
    standard_error: Float64[Tensor, " n"]
    neighbours: int | None = None

    @property
    def relative_error(self) -> float:
        """Root mean square of the standard errors over the values: that of variances given all others, as well."""
        return float((self.standard_error / self.value).square().mean().sqrt())


def exact_inverse_diagonal(factor: Float[Tensor, "n n"]) -> InverseDiagonal:
    """From a Cholesky factor. n^3 / 3 multiplications, no second n x n matrix."""
    n = len(factor)
    value = torch.zeros(n, dtype=torch.float64, device=factor.device)
    for piece in spans(0, n, _COLUMNS):
        # Columns of L^-1 are zero above their own rows.
        columns = factor.new_zeros(n - piece.start, piece.stop - piece.start)
        columns.diagonal().fill_(1)
        own = torch.linalg.solve_triangular(factor[piece.start :, piece.start :], columns, upper=False)
        value[piece] = own.double().square().sum(0)
    return InverseDiagonal(value, torch.zeros_like(value))


def estimated_inverse_diagonal(
    points: FusedKernel,
    noise: Float[Tensor, " n"],
    vecchia: VecchiaPreconditioner,
    pairs: InversePairs,
    allowed: float,
) -> InverseDiagonal:
    """One evaluation of K to find neighbours and O(n (r^2 + k^2 (r + D) + k^3)), once for a sample and once for all.

    :param noise: the diagonal of D.
    :param allowed: as of :meth:`~gp_rangeformer.solvers.estimated_variances.EstimatedVariances.of`.
    """
    work = _Estimate(points, noise, vecchia, pairs)
    m = len(vecchia.order)
    sample = torch.linspace(0, m - 1, min(_SAMPLE, m), device=noise.device).round().long()
    count = _FEWEST
    while count < MOST_NEIGHBOURS - 1:
        value, error = work.of_others(sample, count)
        if float((error / value).square().mean().sqrt()) <= allowed:
            break
        count = min(2 * count, MOST_NEIGHBOURS - 1)
    found = torch.empty(2, points.n, dtype=torch.float64, device=noise.device)
    found[:, vecchia.order] = work.in_pieces(work.of_others, m, count)
    found[:, vecchia.landmarks] = work.in_pieces(work.of_landmarks, len(vecchia.landmarks), MOST_NEIGHBOURS - 1)
    return InverseDiagonal(found[0], found[1], count)


class _Estimate:
    def __init__(self, points: FusedKernel, noise: Tensor, vecchia: VecchiaPreconditioner, pairs: InversePairs) -> None:
        self._points, self._noise, self._vecchia, self._pairs = points, noise, vecchia, pairs
        self._images = ConditionalImages.of(vecchia, pairs.images)

    def of_others(self, asked: Int[Tensor, " t"], count: int) -> tuple[Tensor, Tensor]:
        """Of places in the preconditioner's order, given the landmarks and neighbours."""
        order = self._vecchia.order
        return self._of(order, self._vecchia.explained, self._images, asked, count)

    def of_landmarks(self, asked: Int[Tensor, " t"], count: int) -> tuple[Tensor, Tensor]:
        """Of landmarks, which V has in it: given neighbours alone."""
        everything = torch.arange(self._points.n, device=self._noise.device)
        nothing = self._noise.new_empty(self._points.n, 0)
        images = ConditionalImages.without_landmarks(self._pairs.images)
        return self._of(everything, nothing, images, self._vecchia.landmarks[asked], count)

    def in_pieces(
        self, of: Callable[[Tensor, int], tuple[Tensor, Tensor]], total: int, count: int
    ) -> Float64[Tensor, "2 t"]:
        everything = torch.arange(total, device=self._noise.device)
        parts = [torch.stack(of(everything[piece], count)) for piece in spans(0, total, _AT_ONCE)]
        return torch.cat(parts, dim=1)

    def _of(
        self, chosen: Tensor, explained: Tensor, images: ConditionalImages, asked: Tensor, count: int
    ) -> tuple[Float64[Tensor, " t"], Float64[Tensor, " t"]]:
        further = condition_each(self._points, self._noise, chosen, explained, asked, count)
        own = chosen[asked]
        told = (self._pairs.images[own] - further.weighted(images)).double()
        left = self._pairs.vectors[own].double() - told / further.variances.unsqueeze(-1)
        s = self._pairs.count
        terms = left[:, :s] * left[:, s:]
        return 1 / further.variances + terms.mean(1).clamp_min(0), terms.std(1) / s**0.5
