"""Where a solve looks next: at its residuals, or at its residuals with every row divided by A's diagonal.

The second is Jacobi's preconditioner. It is what a matrix with rows of different sizes needs, and costs iterations
where the diagonal says nothing of the rest (low rank plus diagonal). The tokens decide, once for a matrix: what they
choose between are two Krylov spaces, and a mixture that changes from loop to loop is neither.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn


class Proposal(nn.Module):
    """The choice, from the tokens. Untrained: Jacobi's.

    :param dim: width of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.choice = nn.Linear(2 * dim + 1, 1)
        nn.init.zeros_(self.choice.weight)
        nn.init.ones_(self.choice.bias)

    def forward(self, tokens: Float[Tensor, "b n d"], diagonal: Float64[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """Positive for Jacobi's; the logarithm of the odds that it leaves the smaller errors."""
        tokens = self.norm(tokens)
        spread = _logarithms(diagonal).std(-1, correction=0, keepdim=True).to(tokens.dtype)
        pooled = torch.cat([tokens.mean(-2), tokens.square().mean(-2), spread], dim=-1)
        return self.choice(pooled).squeeze(-1)


def precondition(
    residual: Float64[Tensor, "b n m"], diagonal: Float64[Tensor, "b n"], jacobi: Bool[Tensor, " b"]
) -> Float64[Tensor, "b n m"]:
    """``residual``, its rows divided by the diagonal where ``jacobi`` is. O(n m)."""
    scaled = _logarithms(diagonal).neg().exp()
    return torch.where(jacobi[:, None, None], scaled.unsqueeze(-1), 1.0) * residual


def _logarithms(diagonal: Float64[Tensor, "b n"]) -> Float64[Tensor, "b n"]:
    """Of the diagonal, and zero where one that is not positive says that A is not definite."""
    usable = (diagonal > 0).all(-1, keepdim=True)
    return torch.where(usable, diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).log(), 0.0)
