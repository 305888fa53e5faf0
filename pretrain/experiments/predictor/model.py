"""A small linear transformer over the steps of the past that says how to mix them. No size in its weights.

Token i describes step t-i by inner products with the other steps, averaged over columns: O(n m h^2), no pass over K.
Everything is a cosine or a logarithm of a ratio, so scaling A or B, or permuting the points, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.attention import RowAttention
from pretrain.experiments.predictor.predictors import linear, mix
from pretrain.experiments.predictor.replay import Situation

STEPS = 4
FEATURES = 6 * STEPS + 5


def tokens(situation: Situation) -> Float[Tensor, "h f"]:
    """What is known before the pass, for h = ``STEPS`` steps of the past; see the features' names below."""
    past = situation.past[:STEPS]
    norm = torch.linalg.vector_norm(situation.rhs, dim=0)
    solutions = torch.stack([item.solution for item in past]) / norm
    # The oldest step has no predecessor: its difference is left zero.
    moves = torch.cat([solutions[:-1] - solutions[1:], torch.zeros_like(solutions[:1])]).flatten(1)
    corrections = (torch.stack([item.correction for item in past]) / norm).flatten(1)
    residuals = (torch.stack([item.residual for item in past]) / norm).flatten(1)
    rows = torch.stack([situation.rows, *(item.rows for item in past)])
    drifts = (rows[:-1] - rows[1:]).flatten(1)
    move, correction, residual, drift = (_norms(each) for each in (moves, corrections, residuals, drifts))
    features = [
        torch.eye(STEPS),  # which step
        _cosines(moves, moves),
        _cosines(corrections, corrections),
        _cosines(corrections, moves),
        _cosines(residuals, residuals),
        _cosines(drifts, drifts),
        (move.clamp_min(1e-3 * float(move[0])) / move[0]).log()[:, None],
        (correction / move[0]).log()[:, None],
        (drift / drift[1]).clamp(1e-3, 1e3).log()[:, None],
        (residual / norm.numel() ** 0.5).log10()[:, None] + 2,
        _cosines(residuals, corrections).diagonal()[:, None],
    ]
    return torch.cat(features, dim=1)


def _norms(vectors: Float[Tensor, "h k"]) -> Float[Tensor, " h"]:
    return torch.linalg.vector_norm(vectors, dim=1).clamp_min(1e-20)


def _cosines(left: Float[Tensor, "h k"], right: Float[Tensor, "h k"]) -> Float[Tensor, "h h"]:
    return (left / _norms(left)[:, None]) @ (right / _norms(right)[:, None]).mT


class MixingTransformer(nn.Module):
    """Coefficients of the last ``STEPS`` solutions, which sum to one, and of their corrections.

    Untrained it extrapolates linearly, and with ``corrected`` adds a fifth of the correction.

    :param corrected: whether corrections are mixed in; if not, their coefficients are zero.
    """

    def __init__(self, *, corrected: bool, dim: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.corrected = corrected
        self.embed = nn.Linear(FEATURES, dim)
        self.attentions = nn.ModuleList(RowAttention(dim, 4, 12, "identity") for _ in range(depth))
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2))
        last = self.head[1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        start = torch.zeros(2, STEPS)
        start[:, 0], start[:, 1] = 2.0, -1.0
        start[1] *= 0.2 if corrected else 0.0
        self.start: Tensor
        self.register_buffer("start", start)

    def forward(self, tokens: Float[Tensor, "b h f"]) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h"]]:
        hidden = self.embed(tokens)
        for attention, perceptron in zip(self.attentions, self.perceptrons, strict=True):
            hidden = hidden + attention(hidden)
            hidden = hidden + perceptron(hidden)
        change, correction = self.head(hidden).unbind(-1)
        solutions = self.start[0] + change - change.mean(-1, keepdim=True)
        return solutions, self.start[1] + correction if self.corrected else self.start[1].expand_as(correction)


@dataclass(frozen=True)
class Learned:
    """A trained model as a predictor; linear extrapolation until ``STEPS`` solutions are known."""

    model: MixingTransformer

    def __call__(self, situation: Situation) -> Tensor | None:
        if len(situation.past) < STEPS:
            return linear(situation)
        with torch.no_grad():
            solutions, corrections = self.model(tokens(situation)[None])
        return mix(situation.past, solutions[0].tolist(), corrections[0].tolist() if self.model.corrected else ())
