"""Ranges from columns of K: which r points represent all n."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gp_rangeformer.system.linear_system import LinearSystem


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The range of K[:, index]: a proposal that costs no pass over K, because its sketch is already there.

    ``requested``: how many were asked for, where a selection stopped early because nothing was left to explain. Each
    is equal to itself alone.
    """

    index: Int[Tensor, " r"]
    requested: int = 0

    def suffice(self, rank: int) -> bool:
        """Whether asking for ``rank`` of them would not give more."""
        return max(self.requested, len(self.index)) >= rank

    @functools.cached_property
    def _smallest_size(self) -> int | None:
        """The smallest n of which they are distinct points; None if they are none, not distinct or no indices."""
        if self.index.dim() != 1 or self.index.dtype != torch.int64:
            return None
        index = self.index.cpu().numpy()
        distinct = len(index) > 0 and index.min() >= 0 and len(np.unique(index)) == len(index)
        return int(index.max()) + 1 if distinct else None

    def belong_to(self, n: int) -> bool:
        """Whether they are distinct points of a system of this size. One transfer, once."""
        return self._smallest_size is not None and self._smallest_size <= n

    def sketch(self, system: LinearSystem) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]:
        """K Omega and Omega' K Omega for Omega = the columns of the identity that ``index`` names."""
        columns = system.columns(self.index)
        return columns, columns.index_select(0, self.index)


def uniform_landmarks(system: LinearSystem, rank: int, generator: torch.Generator) -> Landmarks:
    """``rank`` distinct points, each as likely as any other. O(n)."""
    index = torch.randperm(system.size, generator=generator, device="cpu")[: min(rank, system.size)]
    return Landmarks(index.to(system.device), rank)


def rp_cholesky_landmarks(
    system: LinearSystem, rank: int, generator: torch.Generator, *, num_blocks: int = 8
) -> Landmarks:
    """Randomly pivoted Cholesky (Chen, Epperly, Tropp, Webber 2023, arXiv 2207.06503), in blocks.

    Points are drawn with probability proportional to the diagonal of the residual K - Q, ``rank / num_blocks`` at a
    time, and the residual is updated after each block: O(n rank^2) work in ``num_blocks`` vectorised rounds, n x rank
    memory. More blocks follow the residual more closely and cost more, smaller matrix products.
    Stops early, with fewer points, once the residual is rounding.

    :raises ValueError: if the diagonal of K is not finite or has no positive entry.
    """
    n = system.size
    rank = min(rank, n)
    diagonal = system.diagonal().double().cpu().clamp_min(0)
    trace = float(diagonal.sum())
    if not 0 < trace < float("inf"):
        raise ValueError("landmarks need a finite, positive diagonal of the kernel matrix")
    block = -(-rank // num_blocks)
    floor = 8 * torch.finfo(system.dtype).eps * block * trace  # what the shift below leaves behind
    factor = torch.empty(n, rank, dtype=system.dtype, device=system.device)
    chosen: list[Tensor] = []
    count = 0
    residual = diagonal.clone()
    while count < rank and float(residual.sum()) > floor:
        width = min(block, rank - count, int((residual > 0).sum()))
        if width == 0:
            break
        index = torch.multinomial(residual, width, generator=generator).to(system.device)
        previous = factor[:, :count]
        columns = system.columns(index) - previous @ previous.index_select(0, index).mT
        core = columns.index_select(0, index).double()
        # Points of one block may repeat each other: the shift keeps the factorisation alive, at the level of rounding.
        core.diagonal().add_(4 * torch.finfo(system.dtype).eps * max(width, 1) * float(diagonal.max()))
        root, info = torch.linalg.cholesky_ex(core)
        if bool(info):
            break
        new = torch.linalg.solve_triangular(root.to(system.dtype), columns.mT, upper=False).mT
        factor[:, count : count + width] = new
        residual -= new.square().sum(-1).double().cpu()
        chosen.append(index)
        count += width
        residual.clamp_min_(0)
        residual[torch.cat(chosen).cpu()] = 0  # never twice
    return Landmarks(torch.cat(chosen), rank) if chosen else uniform_landmarks(system, rank, generator)
