"""The rungs of the ladder, and the configuration of one training run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pretrain.baselines.numformer import NumFormer, NumFormerConfig
from pretrain.baselines.read_out import SCALARS, SOLVE
from pretrain.baselines.row_transformer import RowTransformer, RowTransformerConfig
from pretrain.experiments.interventions.problems import Distribution

Model = NumFormer | RowTransformer
ROW_SIZES = (5, 10, 16, 20)
# n^4: at n = 20, a step would cost as much as 16 steps at n = 10.
ENTRY_SIZES = (5, 10)


@dataclass(frozen=True)
class Rung:
    """A model and its training data: one change from the rung before."""

    change: str
    kind: str  # "entries": NumFormer; else the feature map of a RowTransformer's attention
    data: Distribution
    looped: bool = False
    operator: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """The n of the training matrices."""
        return ENTRY_SIZES if self.kind == "entries" else ROW_SIZES

    def build(self, tasks: tuple[str, ...], seed: int) -> Model:
        """A new model with weights from ``seed``; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.kind == "entries":
                return NumFormer(NumFormerConfig(tasks))
            assert self.kind in ("softmax", "taylor")
            return RowTransformer(
                RowTransformerConfig(tasks, attention=self.kind, looped=self.looped, operator=self.operator)
            )


LADDER = {
    "numformer": Rung("one token per entry", "entries", "gaussian"),
    "range-embedding": Rung("+ range embedding", "softmax", "gaussian"),
    "linear-attention": Rung("+ linear attention", "taylor", "gaussian"),
    "looping": Rung("+ looping", "taylor", "gaussian", looped=True),
    "structured": Rung("+ structured data", "taylor", "structured", looped=True),
    "operator": Rung("+ operator mode", "taylor", "structured", looped=True, operator=True),
}


@dataclass(frozen=True)
class Training:
    """One training run; its checkpoint carries all of it."""

    rung: Rung
    tasks: tuple[str, ...]
    seed: int
    steps: int
    batch: int = 32  # matrices per task and step, all of one size
    learning_rate: float = 2e-3  # of Adam, after a linear warm-up of 50 steps and before a cosine to zero
    warm_up: int = 50
    clip: float = 1.0  # norm of the gradient


def groups(tasks: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Tasks that share a model: the scalars, and solve."""
    scalars = tuple(task for task in SCALARS if task in tasks)
    solve = (SOLVE,) if SOLVE in tasks else ()
    return [group for group in (scalars, solve) if group]
