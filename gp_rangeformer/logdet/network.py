"""LogDetTail: how much log|A| exceeds log|P|, extrapolated from the evidence of :mod:`gp_rangeformer.logdet.evidence`.

The tail z (nats per point) lies between 0 and a known upper end. A quadrature rule gives a first estimate from the same
evidence, which misses part of the way to the upper end; the network says how much of that way to go, and no answer can
leave the interval:

    H_i = gelu(W h_i + V s)                        one token per group of sampled points, s the system's features
    (share of the way, widths) = mlp(s, mean of H, root mean square of H)

Three quantiles come out (5, 50 and 95 %), trained with the pinball loss: the middle one is the value, the outer ones
are its stated 90 % interval. After training the interval is calibrated on kernels unlike those that a head has seen:
widened by a factor that grows with n and z, and by a floor that matters where the tail is so small that the rounding of
the evidence decides. :mod:`gp_rangeformer.logdet.reader` is the trained network at work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gp_rangeformer.checkpoint import check_sizes
from gp_rangeformer.logdet.features import LOG_SIZE

QUANTILES = (0.05, 0.5, 0.95)
# Upper ends of the bins of n and of the predicted z in which the interval is widened alike.
SIZE_BINS = (4096, 12_000)
VALUE_BINS = (0.3, 1.0, 2.0)
CLIP = 6.0  # standard deviations beyond which a feature no longer moves the answer
LEAST_WAY = 0.05  # of the estimate: noisy moments may put it at the upper end already


@dataclass(frozen=True)
class LogDetTailConfig:
    """Sizes of the network; none of them depends on n."""

    scalars: int
    token_features: int
    dim: int = 48
    hidden: int = 128

    def __post_init__(self) -> None:
        check_sizes("LogDetTail", **asdict(self))


class LogDetTail(nn.Module):
    """See the module's text. About 45,000 parameters at the default configuration."""

    scalar_mean: Tensor
    scalar_scale: Tensor
    scalar_low: Tensor
    scalar_high: Tensor
    token_mean: Tensor
    token_scale: Tensor
    widening: Tensor
    floor: Tensor
    size_ends: Tensor
    value_ends: Tensor

    def __init__(self, config: LogDetTailConfig) -> None:
        super().__init__()
        self.config = config
        dim, hidden = config.dim, config.hidden
        for name, count in (("scalar", config.scalars), ("token", config.token_features)):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_scale", torch.ones(count))
        self.register_buffer("scalar_low", torch.full((config.scalars,), -float("inf")))
        self.register_buffer("scalar_high", torch.full((config.scalars,), float("inf")))
        # Of the interval, from calibration after training: factors, and nats per point added at either end.
        self.register_buffer("widening", torch.ones(len(SIZE_BINS) + 1, len(VALUE_BINS) + 1))
        self.register_buffer("floor", torch.zeros(()))
        # Half a point above the end: the logarithm of a size is rounded.
        ends = torch.tensor([math.log(end + 0.5) for end in SIZE_BINS])
        self.register_buffer("size_ends", ends, persistent=False)
        self.register_buffer("value_ends", torch.tensor(VALUE_BINS), persistent=False)
        self.token = nn.Linear(config.token_features, dim)
        self.context = nn.Linear(config.scalars, dim)
        self.read = nn.Sequential(
            nn.Linear(2 * dim + config.scalars, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 3),
        )
        last = self.read[-1]
        assert isinstance(last, nn.Linear)
        # Untrained, the network answers with a fifth of the way.
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([0.2, -2.0, -2.0])

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> LogDetTail:
        """A fresh network; the inverse of ``dataclasses.asdict(config)``."""
        return cls(LogDetTailConfig(**values))

    def standardise(self, scalars: Float[Tensor, "s f"], tokens: Float[Tensor, "s g c"]) -> None:
        """Take means, scales and ranges of the features from a training set."""
        self.scalar_mean.copy_(scalars.mean(0))
        self.scalar_scale.copy_(scalars.std(0) + 1e-6)
        self.scalar_low.copy_(scalars.amin(0))
        self.scalar_high.copy_(scalars.amax(0))
        self.token_mean.copy_(tokens.mean((0, 1)))
        self.token_scale.copy_(tokens.std((0, 1)) + 1e-6)

    def bins(
        self, log_size: Float[Tensor, " b"], value: Float[Tensor, " b"]
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Row and column of ``widening`` for systems of these sizes and predicted z."""
        row = torch.bucketize(log_size.contiguous(), self.size_ends)
        return row, torch.bucketize(value.contiguous(), self.value_ends)

    def forward(
        self,
        scalars: Float[Tensor, "b f"],
        tokens: Float[Tensor, "b g c"],
        estimate: Float[Tensor, " b"],
        upper: Float[Tensor, " b"],
    ) -> Float[Tensor, "b 3"]:
        """Quantiles of z in nats per point, ascending, within 0..upper. O(g dim^2) per system."""
        given = ((scalars - self.scalar_mean) / self.scalar_scale).clamp(-CLIP, CLIP)
        rows = ((tokens - self.token_mean) / self.token_scale).clamp(-CLIP, CLIP)
        state = nn.functional.gelu(self.token(rows) + self.context(given).unsqueeze(-2))
        pooled = [state.mean(-2), state.square().mean(-2).add(1e-6).sqrt()]
        middle, below, above = self.read(torch.cat([given, *pooled], dim=-1)).unbind(-1)
        way = upper - estimate + LEAST_WAY * estimate
        widening = self.widening[self.bins(scalars[:, LOG_SIZE], estimate + way * middle)]
        softplus = nn.functional.softplus
        below, above = softplus(below) * widening, softplus(above) * widening
        share = torch.stack([middle - below, middle, middle + above], dim=-1)
        answer = estimate.unsqueeze(-1) + way.unsqueeze(-1) * share
        # Before the floor too: what is pressed against an end is no surer than other answers.
        answer = answer.clamp_min(0).minimum(upper.unsqueeze(-1)) + self.floor * answer.new_tensor([-1, 0, 1])
        return answer.clamp_min(0).minimum(upper.unsqueeze(-1))
