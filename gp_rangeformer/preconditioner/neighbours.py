"""Which points every other point is conditioned on, besides the landmarks."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from gp_rangeformer.kernels.conditionals import OrderedPoints
from gp_rangeformer.kernels.evaluate import of_points
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.native.neighbours import MOST_NEIGHBOURS
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.sparse_rows import SparsePattern


@dataclass(frozen=True, eq=False)
class Neighbours:
    """``order``: the points that are no ``landmarks``, in random order (ordered along the data, a point's neighbours
    would lie on one side of it); ``pattern``: for each its neighbours among those before it, as places in this order.
    They stay good while the kernel changes a little, and are wrong without harm."""

    landmarks: Landmarks
    order: Int[Tensor, " m"]
    pattern: SparsePattern

    @functools.cached_property
    def _smallest_size(self) -> int | None:
        """The n of which these are all points but the landmarks, each with neighbours before it; None of none."""
        order, near = self.order, self.pattern.neighbours
        if order.dim() != 1 or order.dtype != torch.int64 or near.dim() != 2 or near.dtype != torch.int32:
            return None
        m, k = near.shape
        everything = torch.cat([order, self.landmarks.index]).sort().values
        whole = torch.equal(everything, torch.arange(len(everything), device=order.device))
        # As one reads them: neighbours, ascending, and nothing from the first -1 on.
        there = near >= 0
        before = near < torch.arange(m, device=near.device).unsqueeze(-1)
        filled = there[:, :-1] >= there[:, 1:]
        if m != len(order) or not 0 < k <= MOST_NEIGHBOURS or not whole or not bool(before.all() and filled.all()):
            return None
        return len(everything)

    def belong_to(self, n: int, landmarks: Landmarks) -> bool:
        """Whether they are neighbours in a system of this size, besides these landmarks. One transfer, once."""
        return self.landmarks is landmarks and self._smallest_size == n

    @property
    def count(self) -> int:
        return self.pattern.neighbours.shape[1]

    @property
    def nbytes(self) -> int:
        return 8 * len(self.order) + self.pattern.nbytes


def ordered_points(points: FusedKernel, order: Int[Tensor, " m"]) -> OrderedPoints:
    arguments = tuple(argument.detach() for argument in points.arguments)
    return OrderedPoints(points.expression, of_points(arguments, order), len(order), points.dtype)


def find_neighbours(points: FusedKernel, landmarks: Landmarks, count: int, generator: torch.Generator) -> Neighbours:
    """The earlier points with the largest entries of K: on UCI data as good as those of the largest correlation given
    the landmarks (equal iterations, 64 and 400 landmarks, 32 to 128 neighbours), and cheaper to find. Half an
    evaluation of K.

    :param count: neighbours of a point, at most 255.
    """
    device = points.arguments[0].device
    shuffled = torch.randperm(points.n, generator=generator, device="cpu").to(device)
    order = shuffled[~torch.isin(shuffled, landmarks.index)]
    return Neighbours(landmarks, order, SparsePattern(ordered_points(points, order).nearest(count)))
