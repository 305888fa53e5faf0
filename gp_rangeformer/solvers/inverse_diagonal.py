"""The diagonal of A^-1: what leave-one-out asks. 1 / (A^-1)_ii is the variance of y_i given all other targets.

From a factor, as precise as that is; or as :mod:`~gp_rangeformer.solvers.estimated_variances` does it: with weights w
of a point's neighbours among the others and v the variance that they leave, x = (e_i - w) / v and r = e_i - A x,

    e_i' A^-1 e_i = 1 / v + r' A^-1 r,

whose last term is estimated from the same pairs of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.native.neighbours import MOST_NEIGHBOURS
from gp_rangeformer.kernels.tiles import spans
from gp_rangeformer.preconditioner.certificate import wide_residual
from gp_rangeformer.preconditioner.further_points import ConditionalImages, condition_each, enough_neighbours
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.solvers.corrections import corrected_by_factor
from gp_rangeformer.solvers.estimated_variances import SAMPLE
from gp_rangeformer.solvers.probes import InversePairs
from gp_rangeformer.solvers.variances import evenly_spread
from gp_rangeformer.system.linear_system import LinearSystem

_AT_ONCE = 4096  # points conditioned together
_COLUMNS = 512  # of the inverse factor at a time
_AUDITED, _REFINEMENTS = 16, 2


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


def audited_inverse_diagonal(system: LinearSystem, factor: Float[Tensor, "n n"]) -> InverseDiagonal:
    """The same from a factor in the dtype of K, whose rounding shows at a few points: refined solves with residuals
    that are summed in float64 tell these. A few wide passes over K."""
    found = exact_inverse_diagonal(factor)
    chosen = evenly_spread(system.size, _AUDITED, factor.device)
    places = chosen, torch.arange(len(chosen), device=factor.device)
    units = torch.zeros(system.size, len(chosen), dtype=torch.float64, device=factor.device)
    units[places] = 1.0
    columns = torch.zeros_like(units)
    for _ in range(1 + _REFINEMENTS):
        columns += corrected_by_factor(factor, wide_residual(system, units, columns))
    off = (found.value[chosen] / columns[places] - 1).square().mean().sqrt()
    return InverseDiagonal(found.value, off * found.value)


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
    m, most = len(vecchia.order), MOST_NEIGHBOURS - 1
    sample = evenly_spread(m, SAMPLE, noise.device)
    count = enough_neighbours(lambda count: work.of_others(sample, count).relative_error, allowed, most)
    value, error = (torch.empty(points.n, dtype=torch.float64, device=noise.device) for _ in range(2))
    for places, of, asked in (
        (vecchia.order, work.of_others, count),
        (vecchia.landmarks, work.of_landmarks, most),
    ):
        everything = torch.arange(len(places), device=noise.device)
        for piece in spans(0, len(places), _AT_ONCE):
            found = of(everything[piece], asked)
            value[places[piece]], error[places[piece]] = found.value, found.standard_error
    return InverseDiagonal(value, error, count)


class _Estimate:
    def __init__(self, points: FusedKernel, noise: Tensor, vecchia: VecchiaPreconditioner, pairs: InversePairs) -> None:
        self._points, self._noise, self._vecchia, self._pairs = points, noise, vecchia, pairs
        self._images = ConditionalImages.of(vecchia, pairs.images)

    def of_others(self, asked: Int[Tensor, " t"], count: int) -> InverseDiagonal:
        """Of places in the preconditioner's order, given the landmarks and neighbours."""
        order = self._vecchia.order
        return self._of(order, self._vecchia.explained, self._images, asked, count)

    def of_landmarks(self, asked: Int[Tensor, " t"], count: int) -> InverseDiagonal:
        """Of landmarks, which V has in it: given neighbours alone."""
        everything = torch.arange(self._points.n, device=self._noise.device)
        nothing = self._noise.new_empty(self._points.n, 0)
        images = ConditionalImages.without_landmarks(self._pairs.images)
        return self._of(everything, nothing, images, self._vecchia.landmarks[asked], count)

    def _of(
        self, chosen: Tensor, explained: Tensor, images: ConditionalImages, asked: Tensor, count: int
    ) -> InverseDiagonal:
        further = condition_each(self._points, self._noise, chosen, explained, asked, count)
        own = chosen[asked]
        told = (self._pairs.images[own] - further.weighted(images)).double()
        left = self._pairs.vectors[own].double() - told / further.variances.unsqueeze(-1)
        gain, error = self._pairs.quadratic_forms(left)
        return InverseDiagonal(1 / further.variances + gain, error)
