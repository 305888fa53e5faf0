"""Read-outs: each scalar starts from what the range already proves, the network adds the part that it cannot see.

For the range U with T = U'AU, what is left is the Schur complement S of T, an (n - k) x (n - k) matrix whose trace is
known, so that log|A| = log|T| + log|S| <= log|T| + (n - k) log(tr S / (n - k)). Below, S has no eigenvalue under A's
smallest. Between the two, the random columns that the range began with are probes of a stochastic Lanczos quadrature
that costs no product: log|A| ~ n mean_j u_j' log(U T U') u_j. The network starts from that estimate. lambda_max is at
least the largest Ritz value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.subspace import GrowingRange

_SMALLEST = 1e-12  # of A / scale: eigenvalues below are rounding
_BELOW = 0.1  # of the smallest Ritz value: where A's smallest eigenvalue is guessed to lie if nothing is known of it
_FOUND = 0.1  # relative residual of a Ritz pair that counts as an eigenpair
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
    quadrature: Float[Tensor, " b"]  # between the two
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
        trace: Float[Tensor, " b"],
        probes: Float[Tensor, "b n p"],
        floor: Float[Tensor, "b 2"],
    ) -> RangeStatistics:
        """O(k^3 + n k p).

        :param trace: of A / scale.
        :param probes: random columns z with E zz' = I that the range grew from.
        :param floor: (log of a known lower bound of A's eigenvalues, 1), or (0, 0) where none is known.
        """
        n, k = grown.basis.shape[-2:]
        values, vectors = grown.ritz()
        values = values.clamp_min(_SMALLEST)
        logs = values.log()
        rest = grown.image @ vectors - (grown.basis @ vectors) * values.unsqueeze(-2)
        residuals = torch.linalg.vector_norm(rest, dim=-2)
        inside = logs.sum(-1)
        outside = grown.conditional.sum(-1).clamp_min(_SMALLEST) / max(n - k, 1)
        known = floor[:, 1].double() > 0
        least = torch.where(known, floor[:, 0].double().exp(), _BELOW * values[:, 0])
        least = torch.minimum(least, outside).clamp_min(_SMALLEST)
        upper = (inside + (n - k) * outside.log()) / n
        lower = (inside + (n - k) * least.log()) / n

        # z' f(A) z / z'z, as if what the range has not seen of z were an eigenvector of the mean of what it has not.
        weights = (vectors.mT @ (grown.basis.mT @ probes)).square() / probes.square().sum(-2)[:, None, :]
        # Eigenpairs that have converged are known, and need no probes: those speak of the complement alone.
        found = (residuals <= _FOUND * (values - values[:, :1])).double()
        others = weights * (1 - found).unsqueeze(-1)
        unseen = (1 - weights.sum(-2)).clamp_min(0)
        share = (others.sum(-2) + unseen).mean(-1).clamp_min(_SMALLEST)

        def of(numbers: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor]:
            """tr f(A) / n from f of the Ritz values, and its standard error over the probes."""
            each = ((others * numbers.unsqueeze(-1)).sum(-2) + unseen * beyond.unsqueeze(-1)) / share.unsqueeze(-1)
            complement = (n - found.sum(-1)) / n
            error = complement * each.std(-1, correction=0) / each.shape[-1] ** 0.5
            return (found * numbers).sum(-1) / n + complement * each.mean(-1), error

        quadrature, error = of(logs, outside.log())
        seen_trace, _ = of(values, outside)
        # Where the probes' eigenvalues have not converged, the quadrature is not the whole of what can be known.
        open_ = (weights.mean(-1) * (residuals / values).clamp_max(1)).sum(-1) + unseen.mean(-1)
        unit = error + open_ * (upper - lower)
        mean = (trace / n).clamp_min(_SMALLEST)
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
            10 * found.mean(-1),
            5 * floor[:, 1].double(),
        ]
        places = torch.linspace(0, 1, _QUANTILES, dtype=values.dtype, device=values.device)
        quantiles = [torch.quantile(numbers, places, dim=-1).mT for numbers in (logs, conditional)]
        features = torch.cat([*quantiles, torch.stack(further, dim=-1)], dim=-1)
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
