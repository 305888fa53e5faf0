"""One transformer block over the rows of a matrix: attention and a row-wise network, each with a normalised input."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.attention import FeatureMap, RowAttention


class Block(nn.Module):
    """X + attention(norm X), then X + mlp(norm X). Cost O(n dim^2) with linear attention.

    :param dim: width of a token.
    :param expansion: hidden width of the row-wise network, in units of ``dim``.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, feature_map: FeatureMap, expansion: int = 2) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = RowAttention(dim, heads, head_dim, feature_map)
        self.mlp_norm = nn.RMSNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))
