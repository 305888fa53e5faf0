"""Read-outs: each scalar starts from what the range already proves, the network adds the part that it cannot see.

For the range U with T = U'AU, what is left is the Schur complement S of T, an (n - k) x (n - k) matrix whose trace is
known, so that log|A| = log|T| + log|S| <= log|T| + (n - k) log(tr S / (n - k)). Below, S has no eigenvalue under A's
smallest. Between the two, the random columns that the range began with are probes of a stochastic Lanczos quadrature
(:mod:`gp_rangeformer.rangeformer.quadrature`). The network starts from that estimate. lambda_max is at least the
largest Ritz value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.floor import floor_bounds
from gp_rangeformer.rangeformer.quadrature import Quadrature, below
from gp_rangeformer.rangeformer.subspace import GrowingRange

_SMALLEST = 1e-12  # of A / scale: eigenvalues below are rounding
_BELOW = 0.1  # of the smallest Ritz value: where A's smallest eigenvalue is guessed to lie if nothing is known of it
_FOUND = 0.1  # relative residual of a Ritz pair that counts as an eigenpair
# Likewise where the range has been grown to solve the probes: it holds nearly all of them, and its Ritz pairs lean on
# them (pretrain/README.md).
_FOUND_OF_SOLVED = 0.05
_QUANTILES = 12  # of the Ritz values, and of the conditional variances
_FURTHER = 14  # features besides
_NEAR = 10  # relative residuals below 1 / 10 count as near convergence
_UNITS = 4  # by which the quadrature is moved at most


@dataclass
class RangeStatistics:
    """What a range knows about A / scale, independent of the order of rows and columns; float64, without gradients.

    Logarithms of determinants are in nats per point.
    """

    largest: Float[Tensor, " b"]  # Ritz value
    residual: Float[Tensor, " b"]  # |A u - theta u| of its pair, relative to theta
    upper: Float[Tensor, " b"]  # of log|A|: certain for positive definite A
    lower: Float[Tensor, " b"]  # certain where a floor is known
    quadrature: Float[Tensor, " b"]  # between the two, by the codes, or by probes
    unit: Float[Tensor, " b"]  # in which its error is counted: of its probes, and of what has not converged
    features: Float[Tensor, "b f"]

    @staticmethod
    def width() -> int:
        """Of ``features``."""
        return 2 * _QUANTILES + _FURTHER

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        grown: GrowingRange,
        ritz: tuple[Float[Tensor, "b k"], Float[Tensor, "b k k"]],
        diagonal: Float[Tensor, "b n"],
        codes: Float[Tensor, "b n d"],
        probes: Float[Tensor, "b n p"] | None,
        floor: Float[Tensor, "b 2"],
    ) -> RangeStatistics:
        """O(n k (k + d + p)).

        :param ritz: of ``grown``.
        :param diagonal: of A / scale.
        :param codes: the random columns that the range began with, probes of its quadrature.
        :param probes: others that it has been grown to solve; ``quadrature`` is then of these.
        :param floor: (log of a known lower bound of A's eigenvalues, 1), or (0, 0) where none is known.
        """
        n, k = grown.basis.shape[-2:]
        values, vectors = ritz[0].clamp_min(_SMALLEST), ritz[1]
        logs = values.log()
        pairs, images = grown.basis @ vectors, grown.image @ vectors
        residuals = torch.linalg.vector_norm(images - pairs * values.unsqueeze(-2), dim=-2)
        inside = logs.sum(-1)
        outside = (grown.conditional.sum(-1) / max(n - k, 1)).clamp_min(_SMALLEST)
        known = floor[:, 1].double() > 0
        least = torch.where(known, floor[:, 0].double().exp(), _BELOW * values[:, 0])
        least = torch.minimum(least, outside).clamp_min(_SMALLEST)
        upper = (inside + (n - k) * outside.log()) / n
        lower = (inside + (n - k) * least.log()) / n

        by_codes = Quadrature.of(grown, values, vectors, residuals, codes, _FOUND)
        quadrature, error = by_codes.mean(logs, outside.log(), n)
        seen_trace, _ = by_codes.mean(values, outside, n)
        # Where the probes' eigenvalues have not converged, the quadrature is not the whole of what can be known.
        open_ = (by_codes.weights.mean(-1) * (residuals / values).clamp_max(1)).sum(-1) + by_codes.unseen.mean(-1)
        unit = error + open_ * (upper - lower)
        mean = diagonal.mean(-1).clamp_min(_SMALLEST)
        conditional = (grown.conditional / mean[:, None]).clamp_min(_SMALLEST).log()
        further = [
            outside.log(),
            least.log(),
            mean.log(),
            (seen_trace / mean).clamp_min(_SMALLEST).log(),
            (residuals[:, -1] / values[:, -1] + 1e-8).log(),
            torch.full_like(outside, n).log(),
            10 * torch.full_like(outside, k / n),
            torch.full_like(outside, k).log(),
            5 * ((quadrature - lower) / (upper - lower).clamp_min(_SMALLEST)).clamp(-1, 2),
            (upper - lower + 1e-6).log(),
            (error + 1e-6).log(),
            (open_ + 1e-6).log(),
            10 * by_codes.found.mean(-1),
            5 * floor[:, 1].double(),
        ]
        places = torch.linspace(0, 1, _QUANTILES, dtype=values.dtype, device=values.device)
        quantiles = [torch.quantile(numbers, places, dim=-1).mT for numbers in (logs, conditional)]
        features = torch.cat([*quantiles, torch.stack(further, dim=-1)], dim=-1)
        if probes is not None:
            by_probes = Quadrature.of(grown, values, vectors, residuals, probes, _FOUND_OF_SOLVED)
            low, high = lower, upper
            if bool(known.any()):
                # Tighter, and not what the network has been trained with.
                by_floor = floor_bounds(pairs, images, values, diagonal, floor[:, 0].double().exp())
                low = torch.where(known, torch.maximum(lower, by_floor[0]), lower)
                high = torch.where(known, torch.minimum(upper, by_floor[1]), upper)
            quadrature = below(high, *by_probes.mean(logs, outside.log(), n)).clamp(low, high)
        quadrature = torch.minimum(torch.maximum(quadrature, lower), upper)
        return cls(values[:, -1], residuals[:, -1] / values[:, -1], upper, lower, quadrature, unit, features)


class ScalarHeads(nn.Module):
    """lambda_max and log|A| per point of A / scale, from pooled tokens and :class:`RangeStatistics`.

    Untrained: the largest Ritz value, and the quadrature.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(2 * dim + RangeStatistics.width(), hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 2),
        )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, tokens: Float[Tensor, "b n d"], statistics: RangeStatistics
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(lambda_max, log|A| / n), both for A / scale, the latter between ``lower`` and ``upper``."""
        pooled = [tokens.mean(-2), tokens.square().mean(-2).add(1e-6).sqrt()]
        inputs = torch.cat([*pooled, 0.2 * statistics.features.to(tokens.dtype)], dim=-1)
        excess, shift = self.network(inputs).double().unbind(-1)
        # A Rayleigh quotient is off by the residual's square: near convergence nothing else is left to add.
        residual = statistics.residual * (_NEAR * statistics.residual).clamp_max(1)
        largest = statistics.largest * (1 + residual * excess.clamp_min(0))
        moved = statistics.quadrature + _UNITS * torch.tanh(shift / _UNITS) * statistics.unit
        return largest, moved.clamp(statistics.lower, statistics.upper)
