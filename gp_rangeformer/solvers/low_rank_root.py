"""A tall root of A^-1 on the preconditioner's range, with an estimate of what it misses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.system.answers import InverseRoot, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason

_VARIANCE_SAMPLES = 32


def low_rank_root(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    solve: Callable[[Float[Tensor, "n m"]], Solution],
    seed: int,
) -> InverseRoot | None:
    """S = B (B'AB)^-1/2 for the basis B of the preconditioner's range, or None if it cannot be made or checked.

    S S' <= A^-1. Its error is measured on 32 random columns of K, solved by ``solve``: how much more variance than the
    certified one it leaves, relative to variance plus noise. One pass with r columns and a solve with 32.

    :param seed: of the sampled columns.
    """
    before = system.passes
    basis = preconditioner.basis / preconditioner.root_noise.unsqueeze(-1)
    if basis.shape[1] == 0:
        return None
    core = (basis.mT @ system.matmul(basis)).double()
    eigenvalues, vectors = torch.linalg.eigh(0.5 * (core + core.mT))
    if not float(eigenvalues[0]) > 0:
        return None
    root = basis @ (vectors * eigenvalues.rsqrt()).to(basis.dtype)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(system.size, generator=generator, device="cpu")[:_VARIANCE_SAMPLES].to(system.device)
    columns = system.columns(sample).contiguous()
    solution = solve(columns)
    if not solution.converged:
        return None
    upper = torch.tensor([interval.upper for interval in solution.inv_quad], dtype=torch.float64, device="cpu")
    explained = (root.mT @ columns).double().square().sum(0).cpu()
    prior = system.diagonal()[sample].double().cpu()
    noise = system.noise[sample].double().cpu()
    # error of the variance, relative to the variance of a noisy observation at the same place
    error = (upper - explained).clamp_min(0) / ((prior - upper).clamp_min(0) + noise)
    return InverseRoot(root, float(error.max()), system.passes - before, Reason.CONVERGED)
