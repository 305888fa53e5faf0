"""The weights that the package ships: an hour on one CPU core."""

from gp_rangeformer.rangeformer.rangeformer import RangeFormerConfig
from pretrain.configs.config import Stage, TrainConfig

CONFIG = TrainConfig(
    name="base",
    model=RangeFormerConfig(dim=64, rank=16, heads=4, loops=8),
    steps=9_000,
    curriculum=(Stage(0.4, 20, 48, 32), Stage(0.7, 24, 96, 24), Stage(0.85, 32, 192, 12), Stage(1.0, 64, 512, 4)),
)
