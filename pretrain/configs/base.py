"""The weights that the package ships: 10 to 30 minutes on one CPU core (pretrain/README.md, section 3)."""

from gp_rangeformer.rangeformer.rangeformer import RangeFormerConfig
from pretrain.configs.config import Stage, TrainConfig

CONFIG = TrainConfig(
    name="base",
    model=RangeFormerConfig(dim=64, sketch=16, width=8, heads=4, loops=16),
    steps=3_000,
    curriculum=(Stage(0.3, 20, 96, 16), Stage(0.6, 32, 192, 8), Stage(0.85, 64, 448, 4), Stage(1.0, 128, 1000, 2)),
    loops=(3, 10),
)
