"""Points given a few earlier ones: rows of a sparse inverse root of what low rank leaves of a kernel matrix (Vecchia).

With S = K - V V' + D and any set c(i) of points before i, row i of a lower triangular G holds numbers on c(i) and i
such that g_i S g_i' = 1 and g_i S e_j = 0 for every j in c(i). On this pattern no G' G is nearer to S^-1 (Kaporin), and
-2 sum_i log G_ii, the sum of the logarithms of the variances given c(i), is never below log|S|.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int32
from torch import Tensor

from gp_rangeformer.kernels.bind import bind
from gp_rangeformer.kernels.evaluate import evaluate_columns, of_points
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.native import neighbours as native
from gp_rangeformer.kernels.native.tiles import NativeTiles
from gp_rangeformer.kernels.tensor.plain import plain
from gp_rangeformer.kernels.tiles import spans

_ROWS = 512  # of K at a time, by tensor operations
_ROUNDING = 4  # units of the rounding of K's entries below which a pivot is none, as the compiled library has it
_NUMBERS = 2**24  # of small blocks at a time


class OrderedPoints:
    """The kernel matrix of some points in an order of their own, without its numbers.

    :param arguments: of these points, as :func:`~gp_rangeformer.kernels.embedding.embed` returns them, without a graph.
    :param n: how many.
    :param dtype: of K.
    """

    def __init__(self, expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype) -> None:
        self._expression, self._n, self._dtype = expression, n, dtype
        tiles = bind(expression, arguments, n, dtype, 1)
        self._native = tiles if isinstance(tiles, NativeTiles) else None
        if self._native is None:  # coordinates as the tiles of K see them
            arguments = tuple(a.to(dtype).to(a.dtype) if a.dim() == 2 else a for a in arguments)
        self._arguments = arguments

    def nearest(self, count: int, first: int = 0) -> Int32[Tensor, "m k"]:
        """Of every point the ``count`` earlier ones with the largest entries of K, ascending, then -1. Half an
        evaluation of K; no n x n memory.

        :param first: of the points from this one on, m of them, and among those before it alone: points that are asked
            about, behind those that are known. 0: of all points.
        """
        if self._native is not None:
            return native.nearest(self._native, count, first)
        device = self._arguments[0].device
        found = torch.full((self._n - first, count), -1, dtype=torch.int32, device=device)
        places = torch.arange(self._n, device=device)
        for rows in spans(first, self._n, _ROWS):
            own = places[rows]
            entries = evaluate_columns(self._expression, self._arguments, self._n, self._dtype, own).mT
            earlier = places < (own.unsqueeze(-1) if first == 0 else first)
            best = entries.masked_fill(~earlier, -torch.inf).topk(min(count, self._n), dim=1)
            chosen = torch.where(best.values > -torch.inf, best.indices, self._n).sort(dim=1).values
            inside = slice(rows.start - first, rows.stop - first)
            found[inside, : chosen.shape[1]] = torch.where(chosen < self._n, chosen, -1).int()
        return found

    def condition(
        self,
        neighbours: Int32[Tensor, "m k"],
        explained: Float[Tensor, "n r"],
        noise: Float[Tensor, " n"],
        first: int = 0,
    ) -> tuple[Float[Tensor, "m k1"], Float64[Tensor, " m"]]:
        """The rows of G, the point's own number last and zeros where there is no neighbour, and the variances
        G_ii^-2, which are at least the noise.

        The blocks of S are factorised in float64, from entries in the dtype of K. O(m k^2 (r + D) + m k^3).

        :param neighbours: as :meth:`nearest` returns them.
        :param explained: V.
        :param noise: the diagonal of D.
        :param first: as of :meth:`nearest`.
        """
        if self._native is not None:
            return native.condition(self._native, neighbours, explained, noise, first)
        size = neighbours.shape[1] + 1
        pieces = spans(first, self._n, max(1, _NUMBERS // (size * max(size, explained.shape[1]))))
        found = [
            self._condition(piece, neighbours[piece.start - first : piece.stop - first], explained, noise)
            for piece in pieces
        ]
        return torch.cat([rows for rows, _ in found]), torch.cat([variances for _, variances in found])

    def _condition(
        self, piece: slice, neighbours: Tensor, explained: Tensor, noise: Tensor
    ) -> tuple[Float[Tensor, "b k1"], Float64[Tensor, " b"]]:
        own = torch.arange(piece.start, piece.stop, device=neighbours.device).unsqueeze(-1)
        there = torch.cat([neighbours >= 0, torch.ones_like(own, dtype=torch.bool)], dim=1)
        index = torch.where(there, torch.cat([neighbours.long(), own], dim=1), own)
        block = plain(self._expression, of_points(self._arguments, index), index.shape[1], self._dtype).double()
        prior = float(block[0, 0, 0])
        low_rank = explained[index]
        block = block - (low_rank @ low_rank.mT).double()
        pairs = there.unsqueeze(-1) & there.unsqueeze(-2)
        block = torch.where(pairs, block, torch.zeros_like(block))
        given = torch.where(there, noise[index].double(), torch.ones_like(block[..., 0]))
        block.diagonal(dim1=-2, dim2=-1).add_(given)
        limit = (0.5 * given).clamp_min(_ROUNDING * torch.finfo(self._dtype).eps * prior)
        factor = torch.linalg.cholesky_ex(block).L
        pivots = factor.diagonal(dim1=-2, dim2=-1).square()
        known = (pivots[:, :-1] > limit[:, :-1]).all(-1) & (pivots[:, -1] >= given[:, -1])
        for number in (~known).nonzero().squeeze(-1).tolist():
            factor[number] = _careful_factor(block[number], limit[number], given[number, -1])
        last = block.new_zeros(index.shape[1], 1)
        last[-1] = 1
        rows = torch.linalg.solve_triangular(factor.mT, last.expand(len(block), -1, -1), upper=True).squeeze(-1)
        return torch.where(there, rows, 0).to(self._dtype), factor[:, -1, -1].square()


def _careful_factor(
    block: Float64[Tensor, "k k"], limit: Float64[Tensor, " k"], noise: Float64[Tensor, ""]
) -> Float64[Tensor, "k k"]:
    """A Cholesky factor that leaves out what others say already, but for rounding; the last pivot is at least
    ``noise``."""
    factor = block.clone()
    for a in range(len(block) - 1):
        if factor[a, a] > limit[a]:
            factor[a, a] = factor[a, a].sqrt()
            factor[a + 1 :, a] /= factor[a, a]
            factor[a + 1 :, a + 1 :] -= torch.outer(factor[a + 1 :, a], factor[a + 1 :, a])
        else:
            factor[a, a] = 1
            factor[a + 1 :, a] = 0
    factor[-1, -1] = factor[-1, -1].maximum(noise).sqrt()
    return factor.tril()
