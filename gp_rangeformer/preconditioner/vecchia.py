"""Landmarks, then neighbours: a preconditioner that holds where low rank saturates, and an upper bound of log|A|.

A = [A11 A12; A21 A22] with the landmarks first. What they leave, S = A22 - A21 A11^-1 A12, has no low rank any more,
but is local: row i of a sparse triangular G is a point given its k nearest earlier ones (Vecchia), G S G' has a unit
diagonal, and P^-1 = W' W with W = [L^-1 0; -G V L^-1 G], A11 = L L', V = A21 L^-T (partial Cholesky and Vecchia:
Kaminetz & Webber 2026, arXiv 2603.05709; AFN: Zhao et al. 2023, arXiv 2304.05460). No triangular system is solved when
it is applied. Unlike the Nystrom preconditioner it is not below A: certificates are that one's.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.allocation.workspace import empty_matrix
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.preconditioner.neighbours import Neighbours, ordered_points
from gp_rangeformer.preconditioner.nystrom import PreconditionerError
from gp_rangeformer.preconditioner.sparse_rows import SparsePattern, SparseRows
from gp_rangeformer.system.linear_system import LinearSystem

_LAST = 128  # points that say how large weights are


@dataclass(frozen=True)
class VecchiaPreconditioner:
    """P in factors. ``root``: L, in float64; ``inverse_root``: L^-1; ``explained``: V; ``conditionals``: the rows of G
    as the ``pattern`` has them; ``log_determinant``: log|P| in nats, which is never below
    log|A| but for rounding, for a variance given a few points is never below the one given all before it."""

    landmarks: Int[Tensor, " r"]
    order: Int[Tensor, " m"]
    root: Float64[Tensor, "r r"]
    inverse_root: Float[Tensor, "r r"]
    explained: Float[Tensor, "m r"]
    pattern: SparsePattern
    conditionals: Float[Tensor, "m k1"]
    rows: SparseRows
    log_determinant: float

    def small_variance(self) -> float:
        """Of an observation given the landmarks and its neighbours before it: a tenth of the points have less."""
        return float((self.conditionals[:, -1].double() ** -2).quantile(0.1))

    def solve(self, rhs: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """P^-1 rhs. 4 n (r + k) c flops."""
        return self.root_solve_transposed(self.root_solve(rhs))

    def root_solve(self, rhs: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """W rhs, the landmarks in front. 2 n (r + k) c flops."""
        r = len(self.landmarks)
        whitened = torch.empty_like(rhs, memory_format=torch.contiguous_format)
        first = torch.mm(self.inverse_root, rhs[self.landmarks], out=whitened[:r])
        whitened[r:] = self.rows.matmul(torch.addmm(rhs[self.order], self.explained, first, alpha=-1))
        return whitened

    def root_solve_transposed(self, rhs: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """W' rhs, for a ``rhs`` with the landmarks in front. The same cost."""
        r = len(self.landmarks)
        rest = self.rows.matmul_transposed(rhs[r:])
        out = torch.empty_like(rhs, memory_format=torch.contiguous_format)
        out[self.order] = rest
        out[self.landmarks] = self.inverse_root.mT @ torch.addmm(rhs[:r], self.explained.mT, rest, alpha=-1)
        return out

    def root_multiply(self, whitened: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """W^-1 of a block with the landmarks in front. The same cost, row after row."""
        r = len(self.landmarks)
        out = torch.empty_like(whitened, memory_format=torch.contiguous_format)
        out[self.landmarks] = self.root.to(whitened.dtype) @ whitened[:r]
        out[self.order] = torch.addmm(self.rows.solve(whitened[r:]), self.explained, whitened[:r])
        return out

    def inverse_columns(self) -> Float[Tensor, "n r"]:
        """P^-1 in the landmarks' columns, the landmarks' own rows in front. O(n r (r + k))."""
        whitened = self.rows.matmul(self.explained @ self.inverse_root)
        own = self.inverse_root.mT @ self.inverse_root + whitened.mT @ whitened
        return torch.cat([own, -self.rows.matmul_transposed(whitened)])

    def inverse_diagonal(self, columns: Float[Tensor, "n r"]) -> Float[Tensor, " n"]:
        """That of P^-1, for what :meth:`inverse_columns` returns. O(n k)."""
        k = self.pattern.neighbours.shape[1]
        squares = self.conditionals.double().square()
        there = self.pattern.neighbours >= 0
        rest = squares[:, k].index_add(0, self.pattern.neighbours[there].long(), squares[:, :k][there])
        out = torch.empty(len(columns), dtype=columns.dtype, device=columns.device)
        out[self.order] = rest.to(columns.dtype)
        out[self.landmarks] = columns[: len(self.landmarks)].diagonal()
        return out

    @functools.cached_property
    def largest_weights(self) -> float:
        """The largest sum of sizes |w|_1 of the weights that predict a point from the landmarks and its neighbours,
        over the last points of the order, which have most points before them."""
        m = len(self.order)
        last = slice(max(0, m - _LAST), m)
        near = self.pattern.neighbours[last].long()
        rows = self.conditionals[last]
        weights = torch.where(near >= 0, -rows[:, :-1] / rows[:, -1:], 0)
        told = torch.einsum("ik,ikr->ir", weights, self.explained[near.clamp_min(0)])
        wide = (self.explained[last] - told).double()
        of_landmarks = torch.linalg.solve_triangular(self.root, wide, upper=False, left=False)
        return float((weights.abs().sum(1) + of_landmarks.abs().sum(1)).max())

    def logdet(self) -> float:
        """log|P| in nats."""
        return self.log_determinant

    def least_ritz_value(self, system: LinearSystem) -> float:
        """No Ritz value of P^-1 A disproves anything but by its sign."""
        return 0.0


def vecchia_preconditioner(system: LinearSystem, points: FusedKernel, neighbours: Neighbours) -> VecchiaPreconditioner:
    """Build P. O(n r^2 + n k^2 (r + D) + n k^3), n (r + 3 k) numbers.

    :raises PreconditionerError: if A is not finite, or not positive definite on the landmarks.
    """
    landmarks, order = neighbours.landmarks.index, neighbours.order
    columns = system.columns(landmarks)
    core = columns[landmarks].double()
    core.diagonal().add_(system.noise[landmarks])
    root, info = torch.linalg.cholesky_ex(core)
    if bool(info):
        raise PreconditionerError("K is not finite, or not positive semi-definite on the landmarks")
    r, m = len(landmarks), len(order)
    wide = empty_matrix(r, m, torch.float64, columns.device).copy_(columns.mT[:, order])
    torch.linalg.solve_triangular(root, wide, upper=False, out=wide)
    explained = torch.empty(m, r, dtype=system.dtype, device=columns.device).copy_(wide.mT)
    rows, variances = ordered_points(points, order).condition(
        neighbours.pattern.neighbours, explained, system.noise[order]
    )
    inverse = torch.linalg.solve_triangular(root, torch.eye(r, dtype=root.dtype, device=root.device), upper=False)
    logdet = float(variances.log().sum() + 2 * root.diagonal().log().sum())
    if not math.isfinite(logdet):
        raise PreconditionerError("the kernel matrix is not finite")
    pattern = neighbours.pattern
    return VecchiaPreconditioner(
        landmarks, order, root, inverse.to(system.dtype), explained, pattern, rows, SparseRows(pattern, rows), logdet
    )
