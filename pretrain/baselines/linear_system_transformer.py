"""A linear transformer that reads the equations of A x = b as tokens and writes x into the query token.

Vladymyrov, von Oswald, Miller and Sandler, "Efficient Linear System Solver with Transformers" (ICML 2024 workshop).
Equation i is the token e_i = (a_i, b_i, h_i), with a row of an embedding H; the query is e_{n+1} = (x_0, 1, ..., 1). A
layer is Delta e_i = sum_{j <= n} (e_j' Q e_i) P e_j for every token, the query too.

The solution is read from the a-block of the query token, where x_0 was put. Why that works with H = (I, I, I): take
Q = 1 in (A, A), -1 in (b, b), and P = -eta in (A, H). The weight of equation j at the query is then a_j'x - b_j, and
the layer adds -eta (A x - b), a step of gradient descent on x'Ax/2 - b'x, without the normal equations that sums over
a_j alone would give. Applied to the equation tokens the same sums multiply A and H by polynomials of A, so that k
layers reach a polynomial of degree up to about 3^k, where k steps of a Krylov method reach k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.attention import linear_attention

Parameterisation = Literal["full", "block"]
Embedding = Literal["learned", "identity"]

# H of three identities: channels A, b, H1, H2, H3.
_IDENTITIES = 3
_CHANNELS = 2 + _IDENTITIES
# A layer is cubic in its tokens and bilinear in (P, Q): no gradient at zero, and powers up to 3^layers when large. From
# these the loss is below that of predicting zero within 500 steps.
_INITIAL_STD = {"full": 0.05, "block": 0.2}


@dataclass(frozen=True)
class LinearSystemTransformerConfig:
    """Shape of a :class:`LinearSystemTransformer`.

    :param layers: number of layers, each with its own P and Q.
    :param parameterisation: "full" has dense P and Q, d x d, for one n; "block" has one scalar per block of P and Q,
        for every n: a multiple of the identity in a square block, of the vector of ones in a rectangular one.
    :param size: n of a full model; None with "block".
    :param embedding: "identity", three n x n identities that are not trained, or "learned", which needs "full".
    :param embedding_dim: width K of a learned embedding; None with "identity", where K = 3n.
    :raises ValueError: if the fields contradict each other.
    """

    layers: int
    parameterisation: Parameterisation = "block"
    size: int | None = None
    embedding: Embedding = "identity"
    embedding_dim: int | None = None

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")
        if self.parameterisation not in ("full", "block") or self.embedding not in ("learned", "identity"):
            raise ValueError(f"unknown parameterisation or embedding: {self.parameterisation!r}, {self.embedding!r}")
        if (self.parameterisation == "full") != (self.size is not None and self.size >= 1):
            raise ValueError(f"a full model needs its size, a block model has none; got size={self.size}")
        if (self.embedding == "learned") != (self.embedding_dim is not None and self.embedding_dim >= 1):
            raise ValueError(f"only a learned embedding has, and needs, embedding_dim; got {self.embedding_dim}")
        if self.embedding == "learned" and self.parameterisation == "block":
            raise ValueError("a learned embedding has one row per equation of one size: use parameterisation='full'")


class LinearSystemTransformer(nn.Module):
    """Approximates x = A^-1 b for a batch of symmetric positive definite A in a fixed number of layers.

    The spectrum of A should be scaled as in training: nothing here normalises it. With the identity embedding and the
    block parameterisation, permuting equations and unknowns together permutes x.

    :ivar query_weights: Q of every layer; ``value_weights`` is P. Full: (layers, d, d), d = n + 1 + K. Block:
        (layers, 5, 5) scalars, rows and columns in the order A, b, H1, H2, H3.
    """

    def __init__(self, config: LinearSystemTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = _CHANNELS
        if config.size is not None:
            width = config.size + 1 + (config.embedding_dim or _IDENTITIES * config.size)
        std = _INITIAL_STD[config.parameterisation]
        self.query_weights = nn.Parameter(std * torch.randn(config.layers, width, width))
        self.value_weights = nn.Parameter(std * torch.randn(config.layers, width, width))
        if config.parameterisation == "block":
            # Rectangular blocks sum over coordinates, so what they add grows with n. They start at zero: systems drawn
            # from a distribution that rotations leave alone need no such sums.
            with torch.no_grad():
                is_b = torch.arange(_CHANNELS) == 1
                rectangular = is_b.unsqueeze(-1) != is_b
                for weights in (self.query_weights, self.value_weights):
                    weights.masked_fill_(rectangular, 0.0)
        self.embedding: nn.Parameter | None = None
        if config.size is not None and config.embedding_dim is not None:
            self.embedding = nn.Parameter(torch.randn(config.size, config.embedding_dim) * config.embedding_dim**-0.5)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> LinearSystemTransformer:
        """A fresh network; the inverse of ``dataclasses.asdict(config)``."""
        return cls(LinearSystemTransformerConfig(**values))

    def forward(
        self,
        matrix: Float[Tensor, "*b n n"],
        rhs: Float[Tensor, "*b n"],
        initial: Float[Tensor, "*b n"] | None = None,
    ) -> Float[Tensor, "*b n"]:
        """x for every system; O(layers n d^2) flops each, d = 4n + 1 with the identity embedding.

        :param matrix: symmetric positive definite, of the dtype of the parameters.
        :param initial: x_0, zero by default.
        :raises ValueError: if the shapes do not fit each other, or n is not the one that a full model serves.
        """
        n = rhs.shape[-1]
        if matrix.shape != (*rhs.shape, n) or (initial is not None and initial.shape != rhs.shape):
            raise ValueError(
                f"matrix (*b, n, n), rhs and initial (*b, n) do not fit: {tuple(matrix.shape)}, {tuple(rhs.shape)}"
                + ("" if initial is None else f", {tuple(initial.shape)}")
            )
        if self.config.size not in (None, n):
            raise ValueError(
                f"this full model serves n = {self.config.size}, got n = {n}: use a block model for other sizes"
            )
        tokens = self._tokens(matrix, rhs, torch.zeros_like(rhs) if initial is None else initial)
        query_weights, value_weights = self.query_weights, self.value_weights
        if self.config.parameterisation == "block":
            query_weights, value_weights = assemble(query_weights, n), assemble(value_weights, n)
        for query_weight, value_weight in zip(query_weights, value_weights, strict=True):
            equations = tokens[..., :n, :]
            update = linear_attention(tokens @ query_weight.mT, equations, equations @ value_weight.mT)
            tokens = tokens + update
        return tokens[..., n, :n]

    def _tokens(
        self, matrix: Float[Tensor, "*b n n"], rhs: Float[Tensor, "*b n"], initial: Float[Tensor, "*b n"]
    ) -> Float[Tensor, "*b t d"]:
        if self.embedding is None:
            embedding = torch.eye(rhs.shape[-1], dtype=rhs.dtype, device=rhs.device).repeat(1, _IDENTITIES)
        else:
            embedding = self.embedding
        equations = torch.cat([matrix, rhs.unsqueeze(-1), embedding.expand(*rhs.shape, -1)], dim=-1)
        ones = rhs.new_ones(*rhs.shape[:-1], 1 + embedding.shape[-1])
        query = torch.cat([initial, ones], dim=-1)
        return torch.cat([equations, query.unsqueeze(-2)], dim=-2)


def assemble(scalars: Float[Tensor, "*l 5 5"], n: int) -> Float[Tensor, "*l d d"]:
    """The d x d matrices of block scalars, d = 4n + 1: identities in square blocks, ones in blocks that meet b."""
    device = scalars.device
    widths = torch.tensor([n, 1, *[n] * _IDENTITIES], device=device)
    channel = torch.repeat_interleave(torch.arange(_CHANNELS, device=device), widths)
    inside = torch.arange(n, device=device).repeat(1 + _IDENTITIES)
    position = torch.cat([inside[:n], inside.new_full((1,), -1), inside[n:]])
    in_b = position < 0
    filled = (position.unsqueeze(-1) == position) | in_b.unsqueeze(-1) | in_b
    select = nn.functional.one_hot(channel, _CHANNELS).to(scalars.dtype)
    return select @ scalars @ select.mT * filled
