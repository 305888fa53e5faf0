"""NumFormer: a transformer that reads a matrix by entries, after Charton, "Linear algebra with transformers" (2022).

vec(A) is the sentence: one token per entry, so n^2 tokens and O(n^4) work, and learned positions that end at the
largest size of a table. The entries are real numbers through a learned 1 x D map, not strings of digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.block import Block
from pretrain.baselines.read_out import SOLVE, ReadOut, unit_rhs


@dataclass(frozen=True)
class NumFormerConfig:
    """Sizes of a NumFormer."""

    tasks: tuple[str, ...]
    dim: int = 48
    depth: int = 4  # different blocks
    heads: int = 4
    head_dim: int = 8  # of queries and keys
    largest: int = 20  # rows and columns that the position tables have


class NumFormer(nn.Module):
    """Softmax attention over the n^2 entries of A / scale, and the n entries of b for ``solve``.

    A token is value x map + row position + column position; an entry of b has a map of its own and its row's position.
    ``scale`` is |A|_F / sqrt(n), the root mean square eigenvalue; that of the zero matrix is 1.
    """

    def __init__(self, config: NumFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.entry = nn.Linear(1, config.dim)
        self.row = nn.Embedding(config.largest, config.dim)
        self.column = nn.Embedding(config.largest, config.dim)
        self.rhs_entry = nn.Linear(1, config.dim) if SOLVE in config.tasks else None
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.head_dim, "softmax") for _ in range(config.depth)
        )
        self.read_out = ReadOut(config.dim, config.tasks)

    @property
    def looped(self) -> bool:
        return False

    def fits(self, size: int) -> bool:
        """Whether the position tables have ``size`` rows and columns."""
        return size <= self.config.largest

    def tokens(
        self, matrices: Float[Tensor, "b n n"], rhs: Float[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The n^2 tokens of the entries, row by row, then the n tokens of the right-hand side if there is one.

        :raises ValueError: if n is beyond the position tables.
        """
        size = matrices.shape[-1]
        if not self.fits(size):
            raise ValueError(f"n = {size} is beyond the position tables of {self.config.largest}: raise `largest`")
        place = torch.arange(size, device=matrices.device)
        row, column = self.row(place), self.column(place)
        tokens = (self.entry(matrices.unsqueeze(-1)) + row.unsqueeze(1) + column).flatten(1, 2)
        if rhs is None:
            return tokens
        assert self.rhs_entry is not None
        return torch.cat([tokens, self.rhs_entry(rhs.unsqueeze(-1)) + row], dim=1)

    def forward(
        self,
        matrices: Float[Tensor, "b n n"],
        rhs: Float[Tensor, "b n"] | None = None,
        loops: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]]:
        """A list with one answer: a dict from task to b numbers, or b x n for ``solve``. O(n^4 dim) each.

        :param matrices: float32.
        :param rhs: for ``solve``, and for no other task.
        :param loops: must be None; the blocks are different ones.
        :param generator: not used: there is nothing random.
        :raises ValueError: if n is beyond the position tables, loops are asked for, or ``rhs`` contradicts the tasks.
        """
        if loops is not None:
            raise ValueError(f"a NumFormer is not looped, it cannot run {loops} loops: leave `loops` out")
        rhs, rhs_length = unit_rhs(rhs, self.config.tasks)
        scale = torch.linalg.matrix_norm(matrices) / matrices.shape[-1] ** 0.5
        scale = scale.where(scale > 0, scale.new_ones(()))
        tokens = self.tokens(matrices / scale[:, None, None], rhs)
        for block in self.blocks:
            tokens = block(tokens)
        return [self.read_out(tokens, tokens[:, -matrices.shape[-1] :], scale, rhs_length)]
