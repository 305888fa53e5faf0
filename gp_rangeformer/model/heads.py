"""Read-outs: each scalar starts from what the range already proves, the network adds the part that it cannot see.

With U the orthonormal range, theta the Ritz values (eigenvalues of U'AU) and rho = (tr A - sum theta) / (n - r) the
mean eigenvalue outside: lambda_max >= max theta, and Fischer's and Hadamard's inequalities give
log|A| <= sum log theta + (n - r) log rho. The learned terms have the sign that these bounds leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SMALLEST = 1e-12  # of A / scale: eigenvalues below are rounding


@dataclass
class RangeStatistics:
    """What a range knows about A / scale, scale-free, independent of the order of rows and columns."""

    ritz: Float[Tensor, "b r"]
    outside: Float[Tensor, " b"]  # mean eigenvalue outside the range
    rank: int
    size: int

    @classmethod
    def of(
        cls, basis: Float[Tensor, "b n r"], image: Float[Tensor, "b n r"], mean_eigenvalue: Float[Tensor, " b"]
    ) -> RangeStatistics:
        core = basis.mT.double() @ image.double()
        ritz = torch.linalg.eigvalsh(0.5 * (core + core.mT)).flip(-1)
        size, rank = basis.shape[-2], basis.shape[-1]
        if rank >= size:  # the range is everything; surplus columns are short and their Ritz values zero
            ritz, rank = ritz[:, :size], size
        outside = (mean_eigenvalue.double() * size - ritz.sum(-1)) / max(size - rank, 1)
        return cls(ritz, outside, rank, size)

    def features(self, width: int) -> Float[Tensor, "b w"]:
        """Logarithms of the Ritz values (padded to ``width``), of the outside mean, log n and the share inside."""
        logs = self.ritz.clamp_min(_SMALLEST).log()
        logs = nn.functional.pad(logs, (0, width - logs.shape[-1]))
        outside = self.outside.clamp_min(_SMALLEST).log()
        size = torch.full_like(outside, float(self.size)).log()
        share = torch.full_like(outside, self.rank / self.size)
        return torch.cat([logs, torch.stack([outside, size, share], dim=-1)], dim=-1)

    def logdet_per_point_bound(self) -> Float[Tensor, " b"]:
        """Upper bound of log|A / scale| / n for positive definite A."""
        inside = self.ritz.clamp_min(_SMALLEST).log().sum(-1)
        rest = (self.size - self.rank) * self.outside.clamp_min(_SMALLEST).log()
        return (inside + rest) / self.size


class ScalarHeads(nn.Module):
    """lambda_max and log|A| per point of A / scale, from pooled tokens and :class:`RangeStatistics`."""

    def __init__(self, dim: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.rank = rank
        self.network = nn.Sequential(
            nn.Linear(2 * dim + rank + 3 + 2, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 2),
        )

    def forward(
        self, tokens: Float[Tensor, "b n d"], statistics: RangeStatistics, floor: Float[Tensor, "b 2"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(lambda_max, log|A| / n), both for A / scale.

        :param floor: (log of a known lower bound of the eigenvalues, 1), or (0, 0) where none is known.
        """
        features = statistics.features(self.rank).to(tokens.dtype)
        pooled = [tokens.mean(-2), tokens.square().mean(-2).add(1e-6).sqrt()]
        inputs = torch.cat([*pooled, 0.2 * features, 0.2 * floor], dim=-1)
        excess, tail = nn.functional.softplus(self.network(inputs).double()).unbind(-1)
        largest = statistics.ritz[:, 0].clamp_min(_SMALLEST) * (1 + 0.1 * excess)
        outside = 1 - statistics.rank / statistics.size  # nothing is hidden from a range that is everything
        return largest, statistics.logdet_per_point_bound() - outside * tail
