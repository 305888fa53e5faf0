"""The range embedding X = A Gamma: tokens for the rows of a matrix from one product with random columns.

Gamma has no weights, so that one network serves every n, permuting the rows of A with their codes permutes X, and the
columns are what else they are needed for: the beginning of a range and, their entries being independent of A, probes of
its log determinant. (One that was learned, a gate of codes by the diagonal, moved neither the range nor the solves.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from gp_rangeformer.rangeformer.operator import MatrixOperator

ROW_FEATURES = 3  # diagonal entry, norm of the embedded row, log n


@dataclass
class Embedded:
    """Gamma, A Gamma / scale, features per row, and the scale that was divided out."""

    projection: Float[Tensor, "b n d"]
    image: Float64[Tensor, "b n d"]
    features: Float[Tensor, "b n f"]
    scale: Float64[Tensor, " b"]  # 1 for a zero matrix, which has none


class RangeEmbedding(nn.Module):
    """``dim`` Gaussian codes and A's image of them. No parameters."""

    like: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # Of no elements: it follows the network's dtype and device.
        self.register_buffer("like", torch.empty(0), persistent=False)

    def codes(self, operator: MatrixOperator, generator: torch.Generator | None = None) -> Float[Tensor, "b n d"]:
        """Fresh Gaussian codes; drawn on the CPU, so that a seed means the same on every device."""
        shape = (operator.batch, operator.size, self.dim)
        return torch.randn(shape, generator=generator, device="cpu").to(self.like)

    def forward(self, operator: MatrixOperator, codes: Float[Tensor, "b n d"]) -> Embedded:
        return embed(operator, codes)


def embed(operator: MatrixOperator, projection: Float[Tensor, "b n d"]) -> Embedded:
    """One product, in the precision of the operator.

    ``scale`` estimates the root mean square eigenvalue, |A Gamma| / |Gamma| in the Frobenius norm: everything that
    follows sees A / scale, so that A -> c A changes ``scale`` and nothing else.
    """
    dtype = projection.dtype
    image = operator.matmul(projection.double())
    # Of entries near 1, whose squares neither overflow nor vanish.
    peak = image.abs().amax((-2, -1))
    peak = torch.where(peak > 0, peak, 1.0)
    image = image / peak[:, None, None]
    relative = torch.linalg.matrix_norm(image) / torch.linalg.matrix_norm(projection.double())
    # A zero matrix is embedded as it is, and everything linear in it comes out as zero.
    relative = torch.where(relative > 0, relative, 1.0)
    image, scale = image / relative[:, None, None], peak * relative
    row_norm = torch.linalg.vector_norm(image, dim=-1).to(dtype) / projection.shape[-1] ** 0.5
    diagonal = (operator.diagonal().double() / scale[:, None]).clamp(-10, 10).to(dtype)
    rows = [diagonal, (row_norm + 1e-6).log(), torch.full_like(diagonal, 0.1 * math.log(operator.size))]
    return Embedded(projection, image, torch.stack(rows, dim=-1), scale)
