"""Further points given the landmarks and their nearest points: variances from above, and the weights behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Int32
from torch import Tensor

from gp_rangeformer.kernels.conditionals import OrderedPoints
from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.kernels.evaluate import of_points
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.preconditioner.sparse_rows import product_of_padded
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner

_FEWEST = 32  # neighbours


@dataclass(frozen=True)
class FurtherPoints:
    """The best linear prediction of f at t points from the landmarks and k others each: b'x with A x = b there.

    ``variances``: of what that leaves of an observation, never below the one that all points leave but for rounding;
    ``neighbours``: places in the preconditioner's order; ``weights``: x there; ``explained``: L^-1 b of the landmarks.
    """

    variances: Float64[Tensor, " t"]
    neighbours: Int32[Tensor, "t k"]
    weights: Float[Tensor, "t k"]
    explained: Float[Tensor, "t r"]

    def weighted(self, images: ConditionalImages) -> Float[Tensor, "t s"]:
        """x'U of every point. 2 t (k + r) s flops."""
        sums = product_of_padded(self.neighbours, self.weights, images.of_others)
        return torch.addmm(sums, self.explained, images.of_landmarks)


@dataclass(frozen=True)
class ConditionalImages:
    """A block U, n x s, as :meth:`FurtherPoints.weighted` reads it: L^-1 U of the landmarks, and what is left of the
    others, U - V L^-1 U."""

    of_landmarks: Float[Tensor, "r s"]
    of_others: Float[Tensor, "m s"]

    @classmethod
    def without_landmarks(cls, block: Float[Tensor, "n s"]) -> ConditionalImages:
        return cls(block[:0], block)

    @classmethod
    def of(cls, vecchia: VecchiaPreconditioner, block: Float[Tensor, "n s"]) -> ConditionalImages:
        wide = torch.linalg.solve_triangular(vecchia.root, block[vecchia.landmarks].double(), upper=False)
        first = wide.to(block.dtype)
        return cls(first, torch.addmm(block[vecchia.order], vecchia.explained, first, alpha=-1))


def enough_neighbours(error_with: Callable[[int], float], allowed: float, most: int) -> int:
    """The first of 32, 64, ... and at last ``most`` neighbours whose error is at most the one allowed."""
    count = min(_FEWEST, most)
    while count < most and not error_with(count) <= allowed:
        count = min(2 * count, most)
    return count


def condition_further(
    cross: CrossKernel,
    vecchia: VecchiaPreconditioner,
    noise: Float[Tensor, " n"],
    own_noise: Float[Tensor, ""],
    count: int,
) -> FurtherPoints:
    """Of the others of ``cross`` given its points. t n entries of K to find the neighbours, O(t (r^2 + k^2 (r + D) +
    k^3)) besides; (n + t) r numbers.

    :param noise: the diagonal of D.
    :param own_noise: of an observation of the others, positive.
    :param count: neighbours of each, at most 255.
    """
    order, landmarks, t = vecchia.order, vecchia.landmarks, cross.t
    m, dtype = len(order), cross.dtype
    positions = torch.cat([order, cross.n + torch.arange(t, device=order.device)])
    arguments = of_points(tuple(argument.detach() for argument in cross.arguments), positions)
    points = OrderedPoints(cross.expression, arguments, m + t, dtype)
    columns = cross.to_some(landmarks).dense().mT.double()
    explained = torch.linalg.solve_triangular(vecchia.root, columns, upper=False).mT.to(dtype)
    neighbours = points.nearest(min(count, m), first=m)
    noises = torch.cat([noise[order], own_noise.to(dtype).expand(t)])
    rows, variances = points.condition(neighbours, torch.cat([vecchia.explained, explained]), noises, first=m)
    return FurtherPoints(variances, neighbours, _weights(rows), explained)


def condition_each(
    points: FusedKernel,
    noise: Float[Tensor, " n"],
    chosen: Int[Tensor, " m"],
    explained: Float[Tensor, "m r"],
    asked: Int[Tensor, " t"],
    count: int,
) -> FurtherPoints:
    """Of some of the chosen points, each given others of them, but never itself. t m entries of K, and as
    :func:`condition_further`.

    :param noise: the diagonal of D, of all points.
    :param explained: V of the chosen ones, or no columns.
    :param asked: places among the chosen.
    :param count: neighbours of each, at most 254.
    """
    m, t = len(chosen), len(asked)
    twice = torch.cat([chosen, chosen[asked]])
    arguments = of_points(tuple(argument.detach() for argument in points.arguments), twice)
    ordered = OrderedPoints(points.expression, arguments, m + t, points.dtype)
    found = ordered.nearest(min(count + 1, m), first=m)
    # The nearest of all is the point itself; of coincident ones the farthest is left out in its place.
    own = found == asked.unsqueeze(-1)
    own[:, -1] |= ~own.any(1)
    neighbours = torch.cat([found[~own].reshape(t, -1), found.new_full((t, 1), -1)], dim=1).contiguous()
    own_explained = explained[asked]
    rows, variances = ordered.condition(neighbours, torch.cat([explained, own_explained]), noise[twice], first=m)
    return FurtherPoints(variances, neighbours, _weights(rows), own_explained)


def _weights(rows: Float[Tensor, "t k1"]) -> Float[Tensor, "t k"]:
    return rows[:, :-1] / -rows[:, -1:]
