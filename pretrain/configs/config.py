"""What a pretraining run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gp_rangeformer.rangeformer.rangeformer import RangeFormerConfig


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum: matrices of the sizes lower..upper until ``until`` (a share of all steps)."""

    until: float
    lower: int
    upper: int
    batch: int  # matrices per step and process


@dataclass(frozen=True)
class TrainConfig:
    """One run. Step k of a run depends on ``seed`` and k alone, so a resumed run repeats an uninterrupted one."""

    name: str
    model: RangeFormerConfig = field(default_factory=RangeFormerConfig)
    steps: int = 10_000
    curriculum: tuple[Stage, ...] = (Stage(1.0, 24, 64, 32),)
    families: Literal["structured", "wishart"] = "structured"
    without: tuple[str, ...] = ()  # structured families to leave out, by name
    right_hand_sides: int = 2
    loops: tuple[int, int] = (3, 8)  # drawn per step, ends included
    widths: tuple[int, int] = (2, 16)  # of a loop, likewise: narrow ranges leave something to say of small matrices
    known_floor: float = 0.5  # share of steps in which the model is told a lower bound of the eigenvalues
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
