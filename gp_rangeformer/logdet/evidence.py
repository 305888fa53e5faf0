"""What one training step already knows about the tail of the log determinant, z = (log|A| - log|P|) / n.

Nothing here multiplies with K. In whitened units (A~ = D^-1/2 A D^-1/2) three sources see the tail:

* The diagonal of E = D^-1/2 (K - Q) D^-1/2, known at every point: Hadamard's inequality turns it into an upper bound.
* Rows of I + E, A~ and P~ at up to 256 random points. The Cholesky factors of their principal blocks hold learning
  curves of every other point: its variance given k of them, for every k. By the chain rule of determinants the mean of
  log v_E over points and over k = 0..n-1 is log|I + E| / n >= z, and that of log v_A - log v_P is z itself: the rows
  show how both curves begin. Which points are given hardly matters; whose curves are averaged does, so many are.
* The probe solutions X = A^-1 Z, which the gradient needs anyway: moments z'P^-1 z, z'A^-1 z and x'P x of the spectrum
  of P^-1 A, averaged over all points. A quadrature rule with two nodes reads a first estimate from them.

The network of :mod:`gp_rangeformer.logdet.network` extrapolates from this evidence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.logdet.features import (
    EIGENVALUES,
    GAP_QUANTILES,
    GAPS,
    LEVELS,
    PLACES,
    TOKENS,
    ordered_scalars,
    ordered_tokens,
)
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.small_cores import to_host

# Points that the others' learning curves are given: 128, and one in 64 of all from there to 256.
_GIVEN = (128, 256)
# Points whose curves are averaged: a quarter of all, up to 1024, and an eighth where that is more. Averages over 128 of
# them varied by 0.004 nats per point with the draw where z > 1, and did not with n.
_ASKED = 1024
SMALLEST_SIZE = 256  # of the cached training set
TRAINED_PROBES = 32  # of the cached training set: fewer make the moments noisier than the network expects
GROUPS = 16  # of sampled points, by the variance that remains: the tokens of the network
_SMALLEST = 1e-8  # argument of a logarithm
_REMAINING = TOKENS.index(f"schur_{LEVELS[-1]}")  # the variance of I + E that all given points leave
_LARGEST_RATIO = 1.001  # of z'A^-1 z to z'P^-1 z: at most 1 but for rounding


@dataclass(frozen=True)
class MomentEvidence:
    """Evidence about one system that needs no sampled points, float64 on the CPU.

    ``scalars``: of the whole system, in the order of :data:`~gp_rangeformer.logdet.features.SCALARS`. ``upper``: the
    rigorous upper end of z in nats per point; the lower is zero.
    ``estimate``: the quadrature rule's. ``definite``: False if the solutions contradict A >= P, so that K has a
    negative direction.
    """

    scalars: Float[Tensor, " f"]
    upper: float
    estimate: float
    definite: bool


@dataclass(frozen=True)
class TailEvidence(MomentEvidence):
    """All of it. ``tokens``: group means over sampled points, sorted by remaining variance; ``features.TOKENS``."""

    tokens: Float[Tensor, "g c"]


def given_points(n: int) -> int:
    """How many points learning curves are given: the first of :func:`sample_points`."""
    return min(n // 8, max(_GIVEN[0], min(_GIVEN[1], n // 64)))


def sample_points(n: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Indices of distinct random points: those that learning curves are given, then those whose curves they are."""
    asked = min(n // 4, max(_ASKED, n // 8))
    return torch.randperm(n, generator=generator, device="cpu")[: given_points(n) + asked]


def tail_evidence(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    quadratic: Float[Tensor, " p"],
    chosen: Int[Tensor, " b"],
) -> TailEvidence:
    """Gather the evidence. No pass over K; reads at most 256 of its columns.

    :param probes: Z, Rademacher vectors.
    :param solutions: X = A^-1 Z, to the solver's tolerance.
    :param quadratic: z'A^-1 z per probe, corrected to second order in the residual.
    :param chosen: points from :func:`sample_points`, or others in such an order.
    Cost: O(n r p + c b (r + c)) for b points, c of them given.
    """
    return ask_tail_evidence(system, preconditioner, probes, solutions, chosen)(quadratic)


def ask_tail_evidence(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    chosen: Int[Tensor, " b"],
) -> Callable[[Tensor], TailEvidence]:
    """Gives the evidence for ``quadratic``, once the host reads what it asked of the device."""
    count, whitened = given_points(system.size), _whitened(preconditioner, probes, solutions)
    seen, asked = preconditioner.seen(system, whitened, chosen), chosen[count:]
    stacked = _whitened_rows(system, preconditioner, chosen, count)
    # Rounding of a float32 K may leave E slightly indefinite; I + E then still has eigenvalues near 1, not near 0.
    factor = torch.linalg.cholesky_ex(stacked[..., :count]).L
    rest = torch.linalg.solve_triangular(factor, stacked[..., count:], upper=False)
    answer = system.ask(
        whitened.square().sum(0, dtype=torch.float64),
        _levels(count, system.device) @ rest.square_(),
        asked,
        probes.index_select(0, asked),
        solutions.index_select(0, asked),
    )

    def gather(quadratic: Tensor) -> TailEvidence:
        """Of every point that is not given: its learning curves, its leverage, and its share of tr(A^-1)."""
        squares, diagonals, gap, leverage = seen()
        sizes, explained, places, signs, solved = answer()
        _, noise = system.diagonals()
        prior = diagonals[:, count:].unsqueeze(1)
        curves = torch.cat([prior, prior - explained], dim=1)
        schur, full, ranged = curves.clamp_min_(1).log_().mT.unbind(0)
        own = (signs * solved).mean(-1, dtype=torch.float64) * noise[places]
        rows = ordered_tokens(
            {"schur": schur, "difference": full - ranged, "ranged": ranged},
            {"leverage": leverage[places], "inverse_diagonal": own},
        ).numpy()
        order = rows[:, _REMAINING].argsort(kind="stable")
        tokens = np.stack([group.mean(0) for group in np.array_split(rows[order], GROUPS)])
        moments = _moments(system, preconditioner, quadratic, squares, sizes, gap, (leverage / noise).sum())
        return TailEvidence(**vars(moments), tokens=torch.from_numpy(tokens))

    return gather


def whitened_rows(
    system: LinearSystem, preconditioner: NystromPreconditioner, chosen: Int[Tensor, " b"], count: int
) -> tuple[Float64[Tensor, "3 c b"], Float64[Tensor, "3 b"]]:
    """The first ``count`` rows of I + E, A~ and P~ on some points, and their diagonals at all of these points. Reads
    ``count`` columns of K; O(c b r)."""
    rows = _whitened_rows(system, preconditioner, chosen, count)
    _, diagonals, *_ = preconditioner.seen(system, system.noise.new_empty(system.size, 0), chosen)()
    return rows, diagonals.to(rows.device)


def _whitened_rows(
    system: LinearSystem, preconditioner: NystromPreconditioner, chosen: Int[Tensor, " b"], count: int
) -> Float64[Tensor, "3 c b"]:
    root = preconditioner.root_noise[chosen].double()
    kernel = system.columns(chosen[:count]).index_select(0, chosen).mT.double() / root / root[:count].unsqueeze(-1)
    low_rank = preconditioner.low_rank_rows(chosen, count)
    schur = kernel - low_rank
    schur.diagonal().clamp_min_(0)
    rows = torch.stack([schur, kernel, low_rank])
    rows.diagonal(dim1=-2, dim2=-1).add_(1)
    return rows


def _whitened(
    preconditioner: NystromPreconditioner, probes: Float[Tensor, "n p"], solutions: Float[Tensor, "n p"]
) -> Float[Tensor, "n twice"]:
    """D^-1/2 Z and D^1/2 X."""
    root_noise = preconditioner.root_noise.unsqueeze(-1)
    return torch.cat([probes / root_noise, solutions * root_noise], dim=1)


@functools.lru_cache(maxsize=8)
def _levels(count: int, device: torch.device) -> Float64[Tensor, "levels c"]:
    """Ones where a learning curve has seen a given point, for every level but the first, at which it has seen none."""
    seen = [max(1, count * level // LEVELS[-1]) for level in LEVELS[1:]]
    return torch.tensor(
        [[float(k < number) for k in range(count)] for number in seen], dtype=torch.float64, device="cpu"
    ).to(device)


def moment_evidence(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    quadratic: Float[Tensor, " p"],
) -> MomentEvidence:
    """Features of the whole system: diagonal, spectrum of Q, moments of the probes. O(n r p)."""
    whitened = _whitened(preconditioner, probes, solutions)
    seen = preconditioner.seen(system, whitened, torch.zeros(0, dtype=torch.long, device=system.device))
    (sizes,) = system.ask(whitened.square().sum(0, dtype=torch.float64))()
    squares, _, gap, leverage = seen()
    _, noise = system.diagonals()
    return _moments(system, preconditioner, quadratic, squares, sizes, gap, (leverage / noise).sum())


def _around_quantiles(n: int) -> list[int]:
    """Places in an ordered list of n numbers between which the quantiles lie, two for each."""
    places = [q * (n - 1) for q in GAP_QUANTILES]
    return [index for place in places for index in (math.floor(place), math.ceil(place))]


def _moments(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    quadratic: Float[Tensor, " p"],
    squares: Float64[Tensor, "r twice"],
    sizes: Float64[Tensor, " twice"],
    gap: Float64[Tensor, " n"],
    trace: Float64[Tensor, ""],
) -> MomentEvidence:
    """``squares``: of coordinates in the range of Q, ``sizes``: of whole vectors; ``trace``: of P^-1."""
    n, p = system.size, len(quadratic)
    facts, diagonal = preconditioner.facts, system.diagonal_facts
    spectrum, mean_gap = facts.spectrum, facts.mean_gap
    shares = spectrum / (1 + spectrum)
    weights = torch.from_numpy(np.stack([shares, shares * (2 - shares), spectrum]))
    around = gap.sort().values[_around_quantiles(n)]
    first, weighted, whole, around, damped = to_host(
        quadratic, weights @ squares, sizes.reshape(2, p), around, (gap / (1 + gap)).mean()
    )
    # log|A| <= sum log A_ii as well
    hadamard = (diagonal.log_total_sum - preconditioner.logdet()) / n
    upper = max(min(facts.log_gap_sum / n, hadamard), 1e-12)

    # z'P^-1 z = |w|^2 - sum share c^2, with w = D^-1/2 z and its coordinates c; |D^1/2 P^-1 z|^2 likewise.
    zero = whole[0] - weighted[0, :p]
    plain_zero = (whole[0] - weighted[1, :p]).sum()
    plain = whole[1].sum()
    second = plain + weighted[2, p:].sum()
    ratio = first.sum() / zero.sum()
    ratio2 = min(second / zero.sum(), ratio)
    # Gauss-Radau with one node at 1: matches the moments 0, -1 and -2 of the spectrum of P^-1 A.
    node = min(max((ratio - ratio2) / max(1 - ratio, 1e-12), _SMALLEST), 1)
    radau = -(1 - ratio) / max(1 - node, 1e-8) * math.log(node)
    gauss = -math.log(max(ratio, 1e-12))
    # The moments are means with respect to P^-1, which hardly sees the range of Q; nor does the tail.
    leverage = 1 - shares.sum() / n
    estimate = max(min(max(radau, gauss) * leverage, upper), 1e-12)
    logs = np.log1p(around).reshape(-1, 2)
    between = np.array([q * (n - 1) % 1 for q in GAP_QUANTILES])
    quantiles = (1 - between) * logs[:, 0] + between * logs[:, 1]
    ranks = [int(q * (len(spectrum) - 1)) for q in PLACES]
    eigenvalues = np.log1p(spectrum[ranks]) if len(spectrum) else np.zeros(len(PLACES))
    spread = float((first / zero).std(ddof=1)) / p**0.5
    relative = plain / plain_zero
    scalars = ordered_scalars(
        {
            "log_size": math.log(n),
            "log_rank_share": math.log(max(len(spectrum), 1) / n),
            "log_noise_deviation": diagonal.log_noise_deviation * (n / max(n - 1, 1)) ** 0.5,
            "upper": upper,
            "log_mean_gap": math.log1p(mean_gap),
            "damped_gap": damped,
            **dict(zip(GAPS, quantiles, strict=True)),
            "range_share": shares.sum() / n,
            "range_logdet": np.log1p(spectrum).sum() / n,
            **dict(zip(EIGENVALUES, eigenvalues, strict=True)),
            "moment_loss": 1 - ratio,
            "moment_drop": ratio - ratio2,
            "gauss": gauss,
            "radau": radau,
            "trace_excess": zero.mean() / float(trace) - 1,
            "moment_spread": spread,
            "solution_loss": 1 - relative,
            "log_estimate": math.log(estimate),
            "estimate_share": estimate / upper,
            "leverage": leverage,
            "log_moment_ratio": math.log(max(ratio2 / ratio, _SMALLEST)),
            "log_node": math.log(node),
            "radau_less_gauss": radau - gauss,
            "log_room": math.log(max(upper - estimate, _SMALLEST)),
            "log_room_above_radau": math.log1p(max(upper - radau, 0)),
            "log_mean_gap_less_radau": math.log1p(mean_gap) - radau,
            "log_solution_ratio": math.log(max(relative, _SMALLEST)),
            "relative_moment_spread": spread / ratio,
            "damped_gap_less_loss": damped - (1 - ratio),
            "log_undamped_gap": math.log(max(1 - damped, _SMALLEST)),
        }
    )
    return MomentEvidence(scalars, upper, float(estimate), bool(ratio < _LARGEST_RATIO))
