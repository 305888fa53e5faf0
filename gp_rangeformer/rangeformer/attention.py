"""Attention over the rows of a matrix: linear in their number, with softmax kept for ablations.

A feature map phi turns softmax's exp(q'k) into phi(q)'phi(k), so that sum_j phi(k_j) v_j' is formed once, O(n f d), and
no n x n array exists (Katharopoulos et al. 2020). "taylor" is the second-order expansion of exp (Arora et al. 2024),
"identity" the plain linear attention of von Oswald et al. 2023, which has no normaliser.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

FeatureMap = Literal["taylor", "identity", "softmax"]


def linear_attention(
    query: Float[Tensor, "*b n f"],
    key: Float[Tensor, "*b k f"],
    value: Float[Tensor, "*b k d"],
) -> Float[Tensor, "*b n d"]:
    """sum_j (q_i' k_j) v_j for every i, in O((n + k) f d): an in-context linear map of the queries."""
    return query @ (key.mT @ value)


def taylor_features(x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n f"]:
    """phi(x) with phi(q)'phi(k) = 1 + s + s^2 / 2, s = q'k / sqrt(d); f = 1 + d + d^2. The kernel is positive."""
    x = x * x.shape[-1] ** -0.25
    square = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * 2**-0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, square], dim=-1)


class RowAttention(nn.Module):
    """Multi-head self-attention over n tokens without positions: permuting rows permutes the output.

    :param dim: width D of a token.
    :param heads: attention heads.
    :param head_dim: width of a head's queries and keys; the Taylor map squares it.
    :param feature_map: "taylor" and "identity" cost O(n), "softmax" O(n^2).
    """

    def __init__(self, dim: int, heads: int, head_dim: int, feature_map: FeatureMap) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        if feature_map not in get_args(FeatureMap):
            raise ValueError(f"feature_map must be one of {', '.join(get_args(FeatureMap))}, got {feature_map!r}")
        self.heads, self.head_dim, self.feature_map = heads, head_dim, feature_map
        self.query_key = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        query, key = _split(self.query_key(tokens), 2 * self.heads).chunk(2, dim=1)
        value = _split(self.value(tokens), self.heads)
        if self.feature_map == "softmax":
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        elif self.feature_map == "identity":
            # The mean over tokens, not the sum, so that the size of the output does not depend on n.
            mixed = linear_attention(query, key, value) / tokens.shape[-2]
        else:
            query, key = taylor_features(query), taylor_features(key)
            total = (query * key.sum(-2, keepdim=True)).sum(-1, keepdim=True)
            mixed = linear_attention(query, key, value) / total
        return self.output(mixed.transpose(1, 2).flatten(-2))


def _split(x: Float[Tensor, "b n w"], heads: int) -> Float[Tensor, "b h n e"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
