"""What one training step already knows about the tail of the log determinant, z = (log|A| - log|P|) / n.

Nothing here multiplies with K. In whitened units (A~ = D^-1/2 A D^-1/2) three sources see the tail:

* The diagonal of E = D^-1/2 (K - Q) D^-1/2, known at every point: Hadamard's inequality turns it into an upper bound.
* Principal blocks of I + E, A~ and P~ on a few random points. Their Cholesky factors hold learning curves: the variance
  of a point given k others, for every k. By the chain rule of determinants the mean of log v_E over points and over
  k = 0..n-1 is log|I + E| / n >= z, and that of log v_A - log v_P is z itself: a block shows how both curves begin.
* The probe solutions X = A^-1 Z, which the gradient needs anyway: moments z'P^-1 z, z'A^-1 z and x'P x of the spectrum
  of P^-1 A, averaged over all points. A quadrature rule with two nodes reads a first estimate from them.

The network of :mod:`gp_rangeformer.model.tail` extrapolates from this evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gp_rangeformer.solvers.base import LinearSystem
from gp_rangeformer.solvers.nystrom import NystromPreconditioner

LARGEST_BLOCK = 256
SMALLEST_SIZE = 256  # of the cached training set
TRAINED_PROBES = 32  # of the cached training set: fewer make the moments noisier than the network expects
GROUPS = 16  # of sampled points, by the variance that remains: the tokens of the network
_LEVELS = (0, 1, 2, 4, 8, 16, 32)  # of 32: how much of the block's first half a learning curve has seen
_SMALLEST = 1e-8  # argument of a logarithm
_LARGEST_RATIO = 1.001  # of z'A^-1 z to z'P^-1 z: at most 1 but for rounding
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97)


@dataclass(frozen=True)
class MomentEvidence:
    """Evidence about one system that needs no block, float64 on the CPU.

    ``scalars``: of the whole system. ``upper``: the rigorous upper end of z in nats per point; the lower is zero.
    ``estimate``: the quadrature rule's. ``definite``: False if the solutions contradict A >= P, so that K has a
    negative direction.
    """

    scalars: Float[Tensor, " f"]
    upper: float
    estimate: float
    definite: bool


@dataclass(frozen=True)
class TailEvidence(MomentEvidence):
    """All of it. ``tokens``: group means over sampled points, sorted by remaining variance."""

    tokens: Float[Tensor, "g c"]


def sample_block(n: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Indices of min(256, n / 4) distinct points, an even number of them."""
    return torch.randperm(n, generator=generator)[: 2 * (min(LARGEST_BLOCK, n // 4) // 2)]


def tail_evidence(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    quadratic: Float[Tensor, " p"],
    block: Int[Tensor, " b"],
) -> TailEvidence:
    """Gather the evidence. No pass over K; reads b of its columns.

    :param probes: Z, Rademacher vectors.
    :param solutions: X = A^-1 Z, to the solver's tolerance.
    :param quadratic: z'A^-1 z per probe, corrected to second order in the residual.
    :param block: random points, at least 2 GROUPS of them, e.g. from :func:`sample_block`.
    Cost: O(n r p + b^2 r + b^3).
    """
    tokens = _tokens(system, preconditioner, probes, solutions, block)
    moments = moment_evidence(system, preconditioner, probes, solutions, quadratic)
    return TailEvidence(**vars(moments), tokens=tokens)


def whitened_blocks(
    system: LinearSystem, preconditioner: NystromPreconditioner, block: Int[Tensor, " b"]
) -> Float[Tensor, "3 b b"]:
    """I + E, A~ and P~ on some points, float64. Reads b columns of K; O(b^2 r)."""
    root = preconditioner.root_noise[block].double()
    basis = preconditioner.basis[block].double()
    kernel = system.columns(block).index_select(0, block).double() / root / root.unsqueeze(-1)
    low_rank = (basis * preconditioner.spectrum) @ basis.mT
    schur = kernel - low_rank
    schur.diagonal().copy_(preconditioner.gap[block])  # clamped at zero there
    stacked = torch.stack([schur, kernel, low_rank])
    stacked.diagonal(dim1=-2, dim2=-1).add_(1)
    return stacked


def _tokens(
    system: LinearSystem, preconditioner: NystromPreconditioner, probes: Tensor, solutions: Tensor, block: Tensor
) -> Tensor:
    stacked = whitened_blocks(system, preconditioner, block)
    half = len(block) // 2
    # Rounding of a float32 K may leave E slightly indefinite; I + E then still has eigenvalues near 1, not near 0.
    # The first half of the columns of the block's factor: all that the curves of the second half of its points need.
    factor = torch.linalg.cholesky_ex(stacked[:, :half, :half]).L
    rest = torch.linalg.solve_triangular(factor, stacked[:, :half, half:], upper=False)
    explained = rest.mT.square().cumsum(-1)
    seen = [max(1, half * level // _LEVELS[-1]) for level in _LEVELS[1:]]
    prior = stacked.diagonal(dim1=-2, dim2=-1)[:, half:]
    curves = [prior, *(prior - explained[..., k - 1] for k in seen)]
    schur_curve, full, ranged = torch.stack(curves, dim=-1).clamp_min(1).log().unbind(0)
    late, spectrum = block[half:], preconditioner.spectrum
    leverage = 1 - preconditioner.basis[late].double().square() @ (spectrum / (1 + spectrum))
    own = (probes[late] * solutions[late]).double().mean(-1) * preconditioner.root_noise[late].double().square()
    rows = torch.cat([schur_curve, full - ranged, ranged, torch.stack([leverage, own], dim=-1)], dim=-1)
    rows = rows[schur_curve[:, -1].argsort()]
    return torch.stack([group.mean(0) for group in rows.tensor_split(GROUPS)]).cpu()


def moment_evidence(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    quadratic: Float[Tensor, " p"],
) -> MomentEvidence:
    """Features of the whole system: diagonal, spectrum of Q, moments of the probes. O(n r p)."""
    n, p = probes.shape
    noise = system.noise.double()
    gap, spectrum = preconditioner.gap, preconditioner.spectrum
    logs = gap.log1p()
    upper = logs.mean()
    # log|A| <= sum log A_ii as well
    hadamard = ((system.diagonal() + system.noise).double().log().sum() - preconditioner.logdet()) / n
    upper = torch.minimum(upper, hadamard).clamp_min(1e-12)

    def weighted(left: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.vecdot(left.double(), right.double(), dim=0)

    shares = spectrum / (1 + spectrum)
    root_noise = preconditioner.root_noise.unsqueeze(-1)

    def in_range(whitened: Tensor) -> tuple[Tensor, Tensor]:
        """Squares of the coordinates in the basis, r x p, and |whitened|^2, p; float64."""
        coordinates = (preconditioner.basis.mT @ whitened).double().square()
        return coordinates, weighted(whitened, whitened)

    # z'P^-1 z = |w|^2 - sum share c^2, with w = D^-1/2 z and its coordinates c; |D^1/2 P^-1 z|^2 likewise.
    seen, size = in_range(probes / root_noise)
    zero = size - shares @ seen
    plain_zero = size - (shares * (2 - shares)) @ seen
    first = quadratic.double()
    seen, plain = in_range(solutions * root_noise)
    second = plain + spectrum @ seen
    leverage = 1 - (preconditioner.basis.square() @ shares.to(preconditioner.basis.dtype)).double()
    trace = (leverage / noise).sum()  # of P^-1
    ratio = first.sum() / zero.sum()
    ratio2 = (second.sum() / zero.sum()).minimum(ratio)
    # Gauss-Radau with one node at 1: matches the moments 0, -1 and -2 of the spectrum of P^-1 A.
    node = ((ratio - ratio2) / (1 - ratio).clamp_min(1e-12)).clamp(_SMALLEST, 1)
    radau = -(1 - ratio) / (1 - node).clamp_min(1e-8) * node.log()
    gauss = -ratio.clamp_min(1e-12).log()
    # The moments are means with respect to P^-1, which hardly sees the range of Q; nor does the tail.
    estimate = (radau.maximum(gauss) * leverage.mean()).minimum(upper).clamp_min(1e-12)
    quantiles = torch.quantile(logs, logs.new_tensor(_QUANTILES))
    ranks = [int(q * (len(spectrum) - 1)) for q in (0, 0.25, 0.5, 0.75, 1)]
    ends = spectrum[ranks].log1p() if len(spectrum) else spectrum.new_zeros(5)
    spread = (first / zero).std() / p**0.5
    damped = (gap / (1 + gap)).mean()
    relative = plain.sum() / plain_zero.sum()
    values = [
        upper.new_tensor(float(n)).log(),  # at LOG_SIZE of the model
        upper.new_tensor(max(len(spectrum), 1) / n).log(),
        noise.log().std(),
        upper,
        gap.mean().log1p(),
        damped,
        *quantiles,
        shares.sum() / n,
        spectrum.log1p().sum() / n,
        *ends,
        1 - ratio,
        ratio - ratio2,
        gauss,
        radau,
        zero.mean() / trace - 1,
        spread,
        1 - relative,
        estimate.log(),
        estimate / upper,
        leverage.mean(),
        # The same again where the hard end can be told apart: there the ratios are nearly zero.
        (ratio2 / ratio).clamp_min(_SMALLEST).log(),
        node.log(),
        radau - gauss,
        (upper - estimate).clamp_min(_SMALLEST).log(),
        (upper - radau).clamp_min(0).log1p(),
        gap.mean().log1p() - radau,
        relative.clamp_min(_SMALLEST).log(),
        spread / ratio,
        damped - (1 - ratio),
        (1 - damped).clamp_min(_SMALLEST).log(),
    ]
    definite = float(ratio) < _LARGEST_RATIO
    return MomentEvidence(torch.stack(values).cpu(), float(upper), float(estimate), definite)
