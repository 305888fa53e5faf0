"""A^-1 of what a solution leaves, roughly: by a factor, or by iterations beside whitened probes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.solvers.block_cg import BlockCGResult, block_cg
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.factorisation import solve_by_factor
from gp_rangeformer.system.reason import Reason

_KEPT = 0.01  # of the norm: what probes that were solved beside others may be off by
_SHARED = 32  # columns that a pass over K takes for little more than one


def corrected_by_factor(factor: Float[Tensor, "n n"], residual: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
    """A^-1 residual by the factor, in whose dtype it might underflow as it is."""
    scale = torch.linalg.vector_norm(residual, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return solve_by_factor(factor, (residual / scale).to(factor.dtype)).double() * scale


def correction_beside_probes(
    prepared: CertifiedPrepared,
    residual: Float64[Tensor, "n m"],
    target: float,
    number: int | None = None,
    patience: int | None = None,
) -> BlockCGResult:
    """A^-1 of the residual, roughly: to ``target`` of its norm, per column.

    Whitened probes go with it, up to 32 columns in all. That many cost a pass over K hardly more than one, which reads
    as much, and what they find shortens the way of the others (kin40k, n = 8000: 19 iterations instead of 38).

    :param number: of the probes, 32 at a time, whose solutions are kept.
    """
    system, vecchia = prepared.system, prepared.vecchia
    own = vecchia or prepared.preconditioner
    assert own is not None
    narrow = residual.to(system.dtype)
    m = narrow.shape[1]
    stop = target * torch.linalg.vector_norm(residual, dim=0)
    beside = max(0, _SHARED - m) if number is None else _SHARED
    further, scale = narrow[:, :0], stop[:0].to(narrow.dtype)
    if vecchia is not None and beside:
        first = 0 if number is None else number * _SHARED
        signs = prepared.signs(first + beside)[:, first:]
        further = vecchia.root_multiply(signs)
        scale = (stop.max() / target / torch.linalg.vector_norm(further, dim=0)).to(narrow.dtype)
    everything = torch.cat([narrow, further * scale], dim=1)
    stop = torch.cat([stop, stop.new_full((further.shape[1],), math.inf)])
    found = block_cg(
        system, own, torch.zeros_like(everything), everything,
        stop_norm=stop, stop_energy=torch.full_like(stop, math.inf), max_passes=prepared.solver.max_passes,
        patience=patience,
    )  # fmt: skip
    if number is not None and found.reason is Reason.CONVERGED and target <= _KEPT and further.shape[1]:
        prepared.solved_probes[number] = found.value[:, m:] / scale
    return replace(found, value=found.value[:, :m], residual=found.residual[:, :m], correction=None)
