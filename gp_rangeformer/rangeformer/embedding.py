"""The range embedding X = A Gamma with a projection that is learned, yet has no size in it.

A learned N x D matrix Gamma serves one N. Here row i of Gamma is made from a fresh Gaussian code and from what is known
of row i (its diagonal entry) by learned weights, so that one set of weights serves every n, and permuting the rows of A
with their codes permutes X.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.operator import MatrixOperator

_ROW_FEATURES = 3  # diagonal entry, norm of the embedded row, log n


@dataclass
class Embedded:
    """Gamma, A Gamma / scale, features per row, and the scale that was divided out."""

    projection: Float[Tensor, "b n d"]
    image: Float[Tensor, "b n d"]
    features: Float[Tensor, "b n f"]
    scale: Float[Tensor, " b"]


class RangeEmbedding(nn.Module):
    """Tokens for the rows of a matrix from one product with an n x dim block.

    ``scale`` estimates the root mean square eigenvalue, |A Gamma| / |Gamma| in the Frobenius norm: everything that
    follows sees A / scale, so that A -> c A changes ``scale`` and nothing else.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(dim, dim, bias=False)
        nn.init.orthogonal_(self.mix.weight)
        self.gate = nn.Sequential(nn.Linear(2, dim), nn.Tanh(), nn.Linear(dim, dim))
        last = self.gate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @property
    def features(self) -> int:
        return _ROW_FEATURES

    def codes(self, operator: MatrixOperator, generator: torch.Generator | None = None) -> Float[Tensor, "b n d"]:
        """Fresh Gaussian codes; drawn on the CPU, so that a seed means the same on every device."""
        shape = (operator.batch, operator.size, self.dim)
        weight = self.mix.weight
        return torch.randn(shape, generator=generator).to(device=weight.device, dtype=weight.dtype)

    def forward(self, operator: MatrixOperator, codes: Float[Tensor, "b n d"]) -> Embedded:
        diagonal = operator.diagonal().to(codes.dtype)
        size = torch.full_like(diagonal, math.log(operator.size))
        typical = diagonal.square().mean(-1, keepdim=True).sqrt().clamp_min(torch.finfo(codes.dtype).tiny)
        gate = self.gate(torch.stack([(diagonal / typical).clamp(-10, 10), 0.1 * size], dim=-1))
        projection = self.mix(codes) * (1 + gate)
        image = operator.matmul(projection)
        scale = torch.linalg.matrix_norm(image) / torch.linalg.matrix_norm(projection)
        # A zero matrix has no scale: it is embedded as it is, and everything linear in it comes out as zero.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        image = image / scale[:, None, None]
        row_norm = torch.linalg.vector_norm(image, dim=-1) / self.dim**0.5
        features = torch.stack(
            [
                (diagonal / scale[:, None]).clamp(-10, 10),
                (row_norm + 1e-6).log(),
                0.1 * size,
            ],
            dim=-1,
        )
        return Embedded(projection, image, features, scale)
