"""log|A| by preconditioned stochastic Lanczos quadrature: fixed probes, an error estimate, two-sided truncation bounds.

log|A| = log|P| + tr log M with M = C^-1 A C^-T, P = C C' (Ubaru, Chen, Saad 2017; Wenger et al. 2022 for the
preconditioner's effect on the variance). A >= P puts the spectrum of M at or above 1, so for every probe the Gauss rule
bounds w' log(M) w from above and the Gauss-Radau rule with its extra node at 1 from below (Golub & Meurant): the
truncation error is known, not guessed, and Lanczos stops when it no longer matters. Where P is not below A no certain
end of the spectrum is known: the extra node is half the smallest Ritz value met. There C^-1 A C^-T has a unit
diagonal, and w'(M - I)w, whose mean is zero, is subtracted as a control variate: it holds most of the probes' variance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.protocol import Preconditioner
from gp_rangeformer.system.answers import Interval
from gp_rangeformer.system.linear_system import LinearSystem

LEVEL = 0.95
# Nats per point that the interval allows for in any case: far below what a fit can notice, and above what is left where
# the probes agree to the last bit.
FLOOR = 1e-5
_FIRST_STEPS = 8  # for which memory is taken at once


@dataclass(frozen=True)
class LanczosTrace:
    """Estimate of tr log M, its interval at ``LEVEL`` (probe variance and truncation together), and passes over K.

    ``smallest``: the smallest Ritz value met; clearly below 1 it proves that K - Q, hence K, has a negative direction.
    ``largest``: the largest, or 1. ``samples``: what each probe says of the value.
    """

    value: float
    interval: Interval
    passes: int
    smallest: float
    largest: float
    samples: tuple[float, ...]


def lanczos_logdet(
    system: LinearSystem,
    preconditioner: Preconditioner,
    probe_vectors: Float[Tensor, "n p"],
    *,
    share: float | None = None,
    image: Float[Tensor, "n p"] | None = None,
    truncation: float = 1e-4,
    max_steps: int = 40,
) -> LanczosTrace:
    """tr log(C^-1 A C^-T) from ``probe_vectors`` with entries +1 and -1 (p >= 2).

    :param share: an estimate of tr(A^-1) min_i D_ii / n, which tells how much rounding matters; None for that of
        a Nystrom preconditioner.
    :param image: A C^-T w of the probes, where it is known: saves a pass.
    :param truncation: half width of the Gauss / Gauss-Radau bracket per point at which to stop, in nats. Lanczos also
        stops once the bracket is a tenth of the standard error over the probes (0.3 where its end is guessed): more
        steps would not help then.
    Cost: at most ``max_steps`` passes with p columns, O(n p r) per step for P, O(n p k) for reorthogonalisation;
    8 n p k bytes after k steps.
    """
    n, p = probe_vectors.shape
    steps = min(max_steps, n)
    norm2 = float(n)  # |w|^2 of a +-1 vector
    dtype = probe_vectors.dtype
    # The recurrence in float64 whatever the products round to: an entry of T that is off by eps |M| moves the Ritz
    # values next to 1 by as much, and with them what all of the range adds to the sum (600 isolated points in float32:
    # 0.02 nats per point). Products round every entry with its own sign, which sums over n entries average out.
    # The vectors of a probe are neighbours in memory: a quarter of the time of the other order.
    basis = probe_vectors.new_empty(p, min(_FIRST_STEPS, steps), n, dtype=torch.float64)
    current = basis[:, 0].copy_(probe_vectors.mT).div_(n**0.5)
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    gauss = radau = torch.zeros(p, dtype=torch.float64, device="cpu")
    below = preconditioner.least_ritz_value(system) > 0
    # Of the standard error over the probes: a bracket that no longer matters. The node of the second is pessimistic.
    enough = 0.1 if below else 0.3
    if share is None:
        assert isinstance(preconditioner, NystromPreconditioner)
        share = float(preconditioner.leverage.mean())
    smallest = largest = 1.0
    for step in range(steps):
        whitened = preconditioner.root_solve_transposed(current.mT.to(dtype))
        product = system.matmul(whitened) if step or image is None else image / n**0.5
        left = preconditioner.root_solve(product).mT.to(torch.float64, copy=True).contiguous()
        alpha = torch.linalg.vecdot(left, current)
        if betas:
            # Where nothing was left to go on with, what follows is cut off from the probe: any value in the spectrum.
            alpha = torch.where(betas[-1] >= torch.finfo(dtype).tiny, alpha, alphas[-1])
        # Full reorthogonalisation, for all probes at once, twice: k stays small, and float32 products lose it early.
        known = basis[:, : step + 1]
        for _ in range(2):
            shares = torch.bmm(known, left.unsqueeze(-1))
            left -= torch.bmm(shares.mT, known).squeeze(1)
        beta = torch.linalg.vector_norm(left, dim=1)
        alphas.append(alpha)
        betas.append(beta)
        if step >= 1 or steps == 1:
            gauss, radau, low, high = _brackets(alphas, betas, 1.0 if below else None)
            if not below:
                # tr M = n is known: what a probe's own w'Mw exceeds it by, it exceeds tr log M by as well, about.
                excess = alphas[0] - 1
                gauss, radau = gauss - excess, radau - excess
            smallest, largest = min(smallest, low), max(largest, high)
            half_width = 0.5 * float((gauss - radau).mean())
            if half_width < max(truncation, enough * float(gauss.std()) / p**0.5):
                break
        if step + 1 == steps:
            break
        if step + 1 == basis.shape[1]:
            basis = torch.cat([basis, basis.new_empty(p, min(step + 1, steps - step - 1), n)], dim=1)
        current = basis[:, step + 1]
        torch.div(left, beta.clamp_min(torch.finfo(dtype).tiny).unsqueeze(-1), out=current)
    middle = 0.5 * (gauss + radau) * norm2
    bracket = 0.5 * abs(float((gauss - radau).mean())) * norm2
    value = float(middle.mean())
    spread = float(middle.std()) / p**0.5 if p > 1 else float("inf")
    half = _student(max(p - 1, 1)) * spread + bracket
    half += norm2 * (FLOOR + lanczos_rounding(system, share, largest, near=not below))
    passes = len(alphas) - (image is not None)
    interval = Interval(value - half, value + half)
    return LanczosTrace(value, interval, passes, smallest, largest, tuple(middle.tolist()))


@functools.cache
def _student(freedom: int) -> float:
    """The quantile of Student's t for ``LEVEL``."""
    from scipy.special import stdtrit  # when first needed: a tenth of a second, scipy.stats four

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def lanczos_rounding(system: LinearSystem, share: float, largest: float, *, near: bool = False) -> float:
    """What the rounding of products may move tr log M / n by, in nats: four standard deviations of two errors.

    A product rounds M v by a vector of norm e |v| with e = rounding_scale / smallest noise, whose share along v, for
    signs that are random against the probe's, is e / sqrt(n). It matters as d log|A| = tr(A^-1 E) says: where A is
    large, little; the square root of the ``share`` of A^-1 that is left counts. Measured errors are 0.01 to 1.6 times
    this (n = 400 to 1600, kernels smooth and rough, noise 1e-5 to 0.1).

    And every entry of T is off by u times the ``largest`` Ritz value / sqrt(n), each by its own; the Ritz values next
    to 1, which are small differences of large entries, move by as much (isolated points, whose other Ritz values are
    250,000: 0.001 nats per point).

    :param near: P is about as large as A in all directions: a product, with C^-T v, is rounded by
        rounding_scale |C^-T v|, which C^-1 makes larger by as much again, and the mean square of either factor is
        tr(P^-1) / n, about ``share`` / smallest noise.
    """
    relative = system.rounding_scale / system.diagonal_facts.smallest_noise
    entries = 0.5 * torch.finfo(system.dtype).eps * largest
    left = min(max(share, 0.0), 1.0)
    return 4 * (relative * (left if near else left**0.5) + entries) / system.size**0.5


def _brackets(alphas: list[Tensor], betas: list[Tensor], end: float | None) -> tuple[Tensor, Tensor, float, float]:
    """Gauss and Gauss-Radau values of e_1' log(T) e_1 per probe; the smallest and largest Ritz value.

    :param end: the extra node, below the spectrum; None for half the smallest Ritz value.
    """
    diagonal = torch.stack(alphas, dim=-1).double().cpu()  # p x k
    off = torch.stack(betas, dim=-1).double().cpu()
    p, k = diagonal.shape
    tridiagonal = torch.diag_embed(diagonal)
    if k > 1:
        tridiagonal += torch.diag_embed(off[:, :-1], offset=1) + torch.diag_embed(off[:, :-1], offset=-1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    smallest, largest = float(nodes.min()), float(nodes.max())
    if end is None:
        end = max(0.5 * smallest, torch.finfo(torch.float64).tiny)
    gauss = (vectors[:, 0].square() * nodes.clamp_min(end).log()).sum(-1)
    # Radau: extend T by one row whose diagonal entry makes the end an eigenvalue (Golub & Meurant 2010, section 6.2).
    # (T - end)^-1 e_k from the eigenvectors. T - end is singular when a Ritz value sits there already; then both rules
    # agree and any solution serves: the one of least norm.
    shifted = nodes - end
    negligible = shifted.abs() <= k * torch.finfo(torch.float64).eps * shifted.abs().amax(-1, keepdim=True)
    inverse = torch.where(negligible, 0, 1 / torch.where(negligible, 1, shifted))
    delta = off[:, -1].square() * (vectors[:, -1].square() * inverse).sum(-1)
    extended = torch.zeros(p, k + 1, k + 1, dtype=torch.float64, device="cpu")
    extended[:, :k, :k] = tridiagonal
    extended[:, k, k - 1] = extended[:, k - 1, k] = off[:, -1]
    extended[:, k, k] = end + delta
    nodes, vectors = torch.linalg.eigh(extended)
    radau = (vectors[:, 0].square() * nodes.clamp_min(end).log()).sum(-1)
    return gauss, radau, smallest, largest
