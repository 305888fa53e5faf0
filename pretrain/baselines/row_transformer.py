"""A transformer over the rows of a matrix, each intervention of the RangeFormer paper a switch.

"Understanding and Relaxing the Limitations of Transformers for Linear Algebra" (ICLR 2026): range embedding (always on
here), linear attention, looping; the training distribution is the trainer's. The operator mode is this project's
addition. The read-outs are the paper's plain linear ones: no Ritz values, no Galerkin step, no bound from theory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.attention import FeatureMap
from gp_rangeformer.rangeformer.block import Block
from gp_rangeformer.rangeformer.operator import DenseOperator
from pretrain.baselines.range_embedding import LearnedRangeEmbedding
from pretrain.baselines.read_out import SOLVE, ReadOut, unit_rhs


@dataclass(frozen=True)
class RowTransformerConfig:
    """Switches and sizes; none of the sizes depends on n.

    :raises ValueError: if ``operator`` is on without ``looped``, or depth < 1.
    """

    tasks: tuple[str, ...]
    attention: FeatureMap = "taylor"
    looped: bool = True  # one block for every loop, the embedding injected again each time; else ``depth`` blocks
    operator: bool = False  # a loop sees A times a learned projection of the state
    diagonal_feature: bool = False  # tokens are told A's diagonal, whose mean is the trace: off, or trace is no task
    dim: int = 48  # width of a token and of the range embedding
    depth: int = 4  # blocks, or loops by default
    heads: int = 4
    head_dim: int = 8  # of queries and keys; the Taylor map squares it
    rank: int = 16  # columns that the operator mode multiplies by A

    def __post_init__(self) -> None:
        if self.depth < 1 or (self.operator and not self.looped):
            raise ValueError(f"depth must be at least 1, and the operator mode needs looped=True: {self}")


class RowTransformer(nn.Module):
    """X = A Gamma, then blocks over the rows, then linear read-outs. Permuting rows and codes permutes x."""

    def __init__(self, config: RowTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.embedding = LearnedRangeEmbedding(dim)
        given = 2 * dim + self.embedding.features + (SOLVE in config.tasks)
        self.token = nn.Linear(given, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.head_dim, config.attention)
            for _ in range(1 if config.looped else config.depth)
        )
        if config.looped:
            self.inject = nn.Linear(given + 2 * config.rank * config.operator, dim)
            self.state_norm = nn.RMSNorm(dim)
        if config.operator:
            self.project = nn.Linear(dim, config.rank, bias=False)
        self.read_out = ReadOut(dim, config.tasks)

    @property
    def looped(self) -> bool:
        return self.config.looped

    def fits(self, size: int) -> bool:
        """Every size does."""
        return size >= 1

    def forward(
        self,
        matrices: Float[Tensor, "b n n"],
        rhs: Float[Tensor, "b n"] | None = None,
        loops: int | None = None,
        generator: torch.Generator | None = None,
        *,
        codes: Float[Tensor, "b n d"] | None = None,
    ) -> list[dict[str, Tensor]]:
        """The answers after every loop, of one pass through the blocks if not looped: dicts from task to b numbers, or
        b x n for ``solve``.

        One product with dim columns, one with rank columns per loop in operator mode, and O(n dim^2) per block, or
        O(n^2 dim) with softmax.

        :param matrices: float32, symmetric.
        :param rhs: for ``solve``, and for no other task.
        :param loops: any number for a looped model, None otherwise.
        :param generator: of the embedding's random codes.
        :param codes: those codes, to repeat or permute them.
        :raises ValueError: if loops < 1, loops are asked for without ``looped``, or ``rhs`` contradicts the tasks.
        """
        config = self.config
        if loops is not None and (loops < 1 or not config.looped):
            raise ValueError(f"loops must be at least 1, and None for a model that is not looped; got {loops}")
        rhs, rhs_length = unit_rhs(rhs, config.tasks)
        operator = DenseOperator(matrices) if config.diagonal_feature else _HiddenDiagonal(matrices)
        embedded = self.embedding(operator, self.embedding.codes(operator, generator) if codes is None else codes)
        scale = embedded.scale.to(embedded.projection.dtype)
        channels = [embedded.projection, embedded.image.to(embedded.projection.dtype), embedded.features]
        given = torch.cat(channels if rhs is None else [*channels, rhs.unsqueeze(-1)], dim=-1)
        tokens = self.token(given)
        if not config.looped:
            for block in self.blocks:
                tokens = block(tokens)
            return [self.read_out(tokens, tokens, scale, rhs_length)]
        answers = []
        for _ in range(config.depth if loops is None else loops):
            state = self.state_norm(tokens)
            seen = [given, *self._products(operator, state, scale)] if config.operator else [given]
            tokens = self.blocks[0](state + self.inject(torch.cat(seen, dim=-1)))
            answers.append(self.read_out(tokens, tokens, scale, rhs_length))
        return answers

    def _products(self, operator: DenseOperator, state: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """A learned projection of the state with columns of root mean square 1, and A / scale times it."""
        columns = self.project(state)
        columns = columns / (columns.square().mean(-2, keepdim=True) + 1e-12).sqrt()
        return columns, operator.matmul(columns) / scale[:, None, None]


class _HiddenDiagonal(DenseOperator):
    """Tells a diagonal of zeros: what is said about A comes from products alone."""

    def diagonal(self) -> Float[Tensor, "b n"]:
        return torch.zeros_like(self.matrices[..., 0])
