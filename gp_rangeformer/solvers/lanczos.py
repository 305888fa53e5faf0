"""log|A| by preconditioned stochastic Lanczos quadrature: fixed probes, an error estimate, two-sided truncation bounds.

log|A| = log|P| + tr log M with M = C^-1 A C^-T, P = C C' (Ubaru, Chen, Saad 2017; Wenger et al. 2022 for the
preconditioner's effect on the variance). A >= P puts the spectrum of M at or above 1, so for every probe the Gauss rule
bounds w' log(M) w from above and the Gauss-Radau rule with its extra node at 1 from below (Golub & Meurant): the
truncation error is known, not guessed, and Lanczos stops when it no longer matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import stdtrit  # quantiles of Student's t, without the 0.4 s of importing scipy.stats
from torch import Tensor

from gp_rangeformer.solvers.base import Interval, LinearSystem
from gp_rangeformer.solvers.nystrom import NystromPreconditioner

LEVEL = 0.95


@dataclass(frozen=True)
class LanczosTrace:
    """Estimate of tr log M, its interval at ``LEVEL`` (probe variance and truncation together), and passes over K.

    ``smallest``: the smallest Ritz value met; clearly below 1 it proves that K - Q, hence K, has a negative direction.
    """

    value: float
    interval: Interval
    passes: int
    smallest: float


def lanczos_logdet(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probe_vectors: Float[Tensor, "n p"],
    *,
    truncation: float = 1e-4,
    max_steps: int = 40,
) -> LanczosTrace:
    """tr log(C^-1 A C^-T) from ``probe_vectors`` with entries +1 and -1 (p >= 2).

    :param truncation: half width of the Gauss / Gauss-Radau bracket per point at which to stop, in nats. Lanczos also
        stops once the bracket is a tenth of the standard error over the probes: more steps would not help then.
    Cost: at most ``max_steps`` passes with p columns, O(n p r) per step for P, O(n p k) for reorthogonalisation;
    n x p x k memory after k steps.
    """
    n, p = probe_vectors.shape
    norm2 = float(n)  # |w|^2 of a +-1 vector
    current = probe_vectors / n**0.5
    basis = [current]
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    gauss = radau = torch.zeros(p, dtype=torch.float64)
    smallest = 1.0
    steps = min(max_steps, n)
    for step in range(steps):
        image = preconditioner.root_solve(system.matmul(preconditioner.root_solve_transposed(current)))
        alpha = torch.linalg.vecdot(image, current, dim=0)
        image = image - alpha * current
        if betas:
            image -= betas[-1] * basis[-2]
        # Full reorthogonalisation, for all probes at once: k stays small, and float32 loses orthogonality early.
        stacked = torch.stack(basis)
        image -= torch.einsum("knp,kp->np", stacked, torch.einsum("knp,np->kp", stacked, image))
        beta = torch.linalg.vector_norm(image, dim=0)
        alphas.append(alpha)
        betas.append(beta)
        if step >= 1 or steps == 1:
            gauss, radau, low = _brackets(alphas, betas)
            smallest = min(smallest, low)
            half_width = 0.5 * float((gauss - radau).mean())
            if half_width < max(truncation, 0.1 * float(gauss.std()) / p**0.5):
                break
        current = image / beta.clamp_min(torch.finfo(image.dtype).tiny)
        basis.append(current)
    middle = 0.5 * (gauss + radau) * norm2
    bracket = 0.5 * abs(float((gauss - radau).mean())) * norm2
    value = float(middle.mean())
    spread = float(middle.std()) / p**0.5 if p > 1 else float("inf")
    half = float(stdtrit(max(p - 1, 1), 0.5 + LEVEL / 2)) * spread + bracket
    return LanczosTrace(value, Interval(value - half, value + half), len(alphas), smallest)


def _brackets(alphas: list[Tensor], betas: list[Tensor]) -> tuple[Tensor, Tensor, float]:
    """Gauss and Gauss-Radau (node at 1) values of e_1' log(T) e_1 per probe, and the smallest Ritz value."""
    diagonal = torch.stack(alphas, dim=-1).double().cpu()  # p x k
    off = torch.stack(betas, dim=-1).double().cpu()
    p, k = diagonal.shape
    tridiagonal = torch.diag_embed(diagonal)
    if k > 1:
        tridiagonal += torch.diag_embed(off[:, :-1], offset=1) + torch.diag_embed(off[:, :-1], offset=-1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    smallest = float(nodes.min())
    gauss = (vectors[:, 0].square() * nodes.clamp_min(1).log()).sum(-1)
    # Radau: extend T by one row whose diagonal entry makes 1 an eigenvalue (Golub & Meurant 2010, section 6.2).
    # (T - I)^-1 e_k from the eigenvectors. T - I is singular when a Ritz value sits at 1 already; then both rules agree
    # and any solution serves: the one of least norm.
    shifted = nodes - 1
    negligible = shifted.abs() <= k * torch.finfo(torch.float64).eps * shifted.abs().amax(-1, keepdim=True)
    inverse = torch.where(negligible, 0, 1 / torch.where(negligible, 1, shifted))
    delta = off[:, -1].square() * (vectors[:, -1].square() * inverse).sum(-1)
    extended = torch.zeros(p, k + 1, k + 1, dtype=torch.float64)
    extended[:, :k, :k] = tridiagonal
    extended[:, k, k - 1] = extended[:, k - 1, k] = off[:, -1]
    extended[:, k, k] = 1 + delta
    nodes, vectors = torch.linalg.eigh(extended)
    radau = (vectors[:, 0].square() * nodes.clamp_min(1).log()).sum(-1)
    return gauss, radau, smallest
