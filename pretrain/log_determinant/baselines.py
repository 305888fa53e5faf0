"""What the learned tail competes with: a block's own log determinant, an extrapolation by hand, and a plain MLP."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.logdet.features import FIRST_OF_PROBES, LEVELS, TOKENS

_BLOCK_SCALARS = slice(0, FIRST_OF_PROBES)  # sizes, diagonal, spectrum of Q
_CURVES = slice(0, TOKENS.index("leverage"))
_REMAINING = TOKENS.index(f"schur_{LEVELS[-1]}")


def block_alone(matrix: Float[Tensor, "b b"]) -> float:
    """log|I + E_SS| / |S|: above z on average (Han, Szasz)."""
    return float(2 * torch.linalg.cholesky(matrix).diagonal().log().mean())


def extrapolated(matrix: Float[Tensor, "b b"], n: int) -> float:
    """The learning curve of the block, continued to n points by the power law of its second half.

    g(k), the mean of log v after k points, falls like k^-a; log|I + E| / n is the mean of g over k = 0..n-1.
    """
    steps = 2 * torch.linalg.cholesky(matrix).diagonal().log()
    size = len(steps)
    quarter, half = size // 4, size // 2
    early = steps[quarter:half].mean().clamp_min(1e-12)
    late = steps[half:].mean().clamp_min(1e-12)
    # The centres of the two windows are a factor of two apart.
    power = float((early / late).log() / torch.tensor(2.0).log())
    places = torch.arange(size, n, dtype=torch.float64)
    continued = late * (places / (0.75 * size)) ** -max(power, 0.0)
    return float((steps.sum() + continued.sum()) / n)


class BlockMLP(nn.Module):
    """An MLP on the means of the nested-block features: the same training, no probe moments, no tokens.

    The interface of :class:`~gp_rangeformer.logdet.network.LogDetTail`; the block's largest level is its first
    estimate.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, scalars: Float[Tensor, "s f"], tokens: Float[Tensor, "s g c"], hidden: int) -> None:
        super().__init__()
        features = self._features(scalars, tokens)
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("scale", features.std(0) + 1e-6)
        width = features.shape[-1]
        self.network = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 3)
        )

    @staticmethod
    def _features(scalars: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([scalars[:, _BLOCK_SCALARS], tokens[..., _CURVES].mean(-2)], dim=-1)

    def forward(self, scalars: Tensor, tokens: Tensor, estimate: Tensor, upper: Tensor) -> Float[Tensor, "b 3"]:
        given = ((self._features(scalars, tokens) - self.mean) / self.scale).clamp(-6, 6)
        middle, below, above = self.network(given).unbind(-1)
        last = tokens[..., _REMAINING].mean(-1)
        start = torch.logit((last / upper).clamp(1e-5, 1 - 1e-5)) + middle
        softplus = nn.functional.softplus
        logits = torch.stack([start - softplus(below), start, start + softplus(above)], dim=-1)
        return upper.unsqueeze(-1) * logits.sigmoid()
