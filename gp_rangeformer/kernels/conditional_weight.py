"""The gradient weight of a Vecchia preconditioner's log determinant: scale P^-1, of which n (r + k^2) entries matter.

P^-1 = W' W is the sum of g_i' g_i over the rows of a sparse matrix, on the points that are no landmarks, and of what
stands in the rows and columns of the landmarks. So d tr(P^-1 K) takes derivatives of K between every point and the
landmarks, and within every point's own neighbourhood.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from gp_rangeformer.kernels.evaluate import of_points
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.native.neighbours import pull_conditions
from gp_rangeformer.kernels.native.tiles import NativeTiles
from gp_rangeformer.kernels.tiles import Block


@dataclass(frozen=True)
class ConditionalWeight:
    """W = scale P^-1, symmetric.

    ``landmarks`` and ``order``: all n points; ``neighbours``, places in ``order``, and ``rows``: the g_i, each on its
    neighbours and, last, on itself; ``columns``: P^-1 in the landmarks' columns, the landmarks' own rows in front;
    ``diagonal``: that of P^-1.
    """

    landmarks: Int[Tensor, " r"]
    order: Int[Tensor, " m"]
    neighbours: Int32[Tensor, "m k"]
    rows: Float[Tensor, "m k1"]
    columns: Float[Tensor, "n r"]
    diagonal: Float[Tensor, " n"]
    scale: Float[Tensor, ""]

    def own_diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of W. O(n)."""
        return self.scale * self.diagonal

    def formed(self) -> Float[Tensor, "n n"]:
        """W as it is: n^2 (1 + k) numbers of work, n^2 memory."""
        m = len(self.neighbours)
        places = torch.arange(m, device=self.order.device).unsqueeze(-1)
        places = torch.cat([torch.where(self.neighbours >= 0, self.neighbours.long(), places), places], dim=1)
        sparse = self.rows.new_zeros(m, m).scatter_add_(1, places, self.rows)
        n, r = self.columns.shape
        permuted = self.columns.new_empty(n, n)
        permuted[:, :r], permuted[:r] = self.columns, self.columns.mT
        torch.mm(sparse.mT, sparse, out=permuted[r:, r:])
        everything = torch.cat([self.landmarks, self.order])
        out = torch.empty_like(permuted)
        out[everything.unsqueeze(-1), everything] = permuted
        return out.mul_(self.scale)

    def contract(
        self, expression: Expression, arguments: tuple[Tensor, ...], dtype: torch.dtype
    ) -> list[Tensor] | None:
        """d sum(W * K) for every one of ``arguments``, in float64; None without compiled code, which makes the
        derivatives one by one. n (r + k^2 / 2) of them."""
        library = library_on(arguments[0].device)
        if library is None:
            return None
        everything = torch.cat([self.landmarks, self.order])
        n, r = self.columns.shape
        cross = NativeTiles(library, expression, of_points(arguments, everything), n, dtype)
        # Once for the rows and once for the columns of the landmarks; their own block stands in both.
        weight = 2 * self.columns
        weight[:r] = self.columns[:r]
        cross.pull(Block(slice(0, n), slice(0, r)), weight.to(dtype))
        within = NativeTiles(library, expression, of_points(arguments, self.order), n - r, dtype)
        pull_conditions(within, self.neighbours, self.rows)
        found = []
        for argument, one, other in zip(arguments, cross.gradients(), within.gradients(), strict=True):
            if argument.dim() == 2:
                total = torch.zeros(argument.shape, dtype=torch.float64, device="cpu")
                total[everything] = one
                total[self.order] += other
            else:
                total = (one + other).reshape(argument.shape)
            found.append(total * self.scale)
        return found
