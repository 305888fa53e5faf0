"""Read-outs: each scalar starts from what the range already proves, the network adds the part that it cannot see.

With U the orthonormal range, theta the Ritz values (eigenvalues of U'AU) and rho = (tr A - sum theta) / (n - r) the
mean eigenvalue outside: lambda_max >= max theta, and Fischer's and Hadamard's inequalities give
log|A| <= sum log theta + (n - r) log rho. The learned terms have the sign that these bounds leave, and vanish where the
range shows that there is nothing to add: a Ritz pair without residual, a spectrum without spread outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.embedding import Embedded

_SMALLEST = 1e-12  # of A / scale: eigenvalues below are rounding
_SPREAD = 0.05  # relative variance outside at which the learned tail is halved
_FURTHER = 5  # features besides the Ritz values


@dataclass
class RangeStatistics:
    """What a range knows about A / scale, independent of the order of rows and columns; float64."""

    ritz: Float[Tensor, "b r"]  # descending
    residual: Float[Tensor, " b"]  # |A u - theta u| of the first Ritz pair, relative to theta
    outside: Float[Tensor, " b"]  # mean eigenvalue outside the range
    spread: Float[Tensor, " b"]  # relative variance of the eigenvalues outside, estimated from the embedding
    rank: int
    size: int

    @classmethod
    def of(
        cls,
        basis: Float[Tensor, "b n r"],
        image: Float[Tensor, "b n r"],
        embedded: Embedded,
        mean_eigenvalue: Float[Tensor, " b"],
    ) -> RangeStatistics:
        """No further product with A: (I - UU') A (I - UU') Gamma follows from A Gamma and A U. O(n r dim)."""
        core = basis.mT.double() @ image.double()
        core = 0.5 * (core + core.mT)
        ritz, vectors = torch.linalg.eigh(core)
        # Gradients of eigenvectors do not exist where eigenvalues meet: none are taken.
        ritz, first = ritz.flip(-1), vectors[..., -1:].detach().to(basis.dtype)
        size, rank = basis.shape[-2], basis.shape[-1]
        if rank >= size:  # the range is everything; the Ritz values of surplus columns are zero
            ritz, rank = ritz[:, :size], size
        with torch.no_grad():
            residual = (image @ first).double() - ritz[:, None, :1] * (basis @ first).double()
            residual = residual.flatten(1).norm(dim=-1) / ritz[:, 0].abs().clamp_min(_SMALLEST)
        outside = (mean_eigenvalue.double() * size - ritz.sum(-1)) / max(size - rank, 1)
        inside = basis.mT @ embedded.projection
        projection = embedded.projection - basis @ inside
        product = embedded.image - image @ inside
        product = product - basis @ (basis.mT @ product)
        square = product.double().square().sum((-1, -2)) / projection.double().square().sum((-1, -2)).clamp_min(1e-30)
        spread = (square / outside.clamp_min(_SMALLEST).square() - 1).clamp(0, 1e6)
        return cls(ritz, residual, outside, spread, rank, size)

    def features(self, width: int) -> Float[Tensor, "b w"]:
        """Logarithms of the Ritz values (padded to ``width``), of the mean and spread outside, and of n; the share
        inside; the logarithm of the residual."""
        logs = self.ritz.clamp_min(_SMALLEST).log()
        logs = nn.functional.pad(logs, (0, width - logs.shape[-1]))
        size = torch.full_like(self.outside, float(self.size)).log()
        share = torch.full_like(self.outside, self.rank / self.size)
        further = [
            self.outside.clamp_min(_SMALLEST).log(),
            (self.spread + 1e-3).log(),
            size,
            share,
            (self.residual + 1e-8).log(),
        ]
        return torch.cat([logs, torch.stack(further, dim=-1)], dim=-1)

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
            nn.Linear(2 * dim + rank + _FURTHER + 2, hidden),
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
        largest = statistics.ritz[:, 0].clamp_min(_SMALLEST) * (1 + statistics.residual * excess)
        outside = 1 - statistics.rank / statistics.size  # nothing is hidden from a range that is everything
        spread = statistics.spread / (statistics.spread + _SPREAD)
        return largest, statistics.logdet_per_point_bound() - outside * spread * tail
