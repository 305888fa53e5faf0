"""The paper's range embedding, X = A Gamma with a projection that is learned, yet has no size in it.

A learned N x D matrix Gamma serves one N. Here row i of Gamma is made from a fresh Gaussian code and from what is known
of row i (its diagonal entry) by learned weights, so that one set of weights serves every n, and permuting the rows of A
with their codes permutes X.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.embedding import ROW_FEATURES, Embedded, RangeEmbedding, embed
from gp_rangeformer.rangeformer.operator import MatrixOperator


class LearnedRangeEmbedding(RangeEmbedding):
    """Tokens for the rows of a matrix from one product with an n x dim block that learned weights make of the codes."""

    features = ROW_FEATURES

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.mix = nn.Linear(dim, dim, bias=False)
        nn.init.orthogonal_(self.mix.weight)
        self.gate = nn.Sequential(nn.Linear(2, dim), nn.Tanh(), nn.Linear(dim, dim))
        last = self.gate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, operator: MatrixOperator, codes: Float[Tensor, "b n d"]) -> Embedded:
        diagonal = operator.diagonal().to(codes.dtype)
        size = torch.full_like(diagonal, math.log(operator.size))
        typical = diagonal.square().mean(-1, keepdim=True).sqrt().clamp_min(torch.finfo(codes.dtype).tiny)
        gate = self.gate(torch.stack([(diagonal / typical).clamp(-10, 10), 0.1 * size], dim=-1))
        return embed(operator, self.mix(codes) * (1 + gate))
