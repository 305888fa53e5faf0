"""A minute on a laptop: shows that the loss falls."""

from gp_rangeformer.rangeformer.rangeformer import RangeFormerConfig
from pretrain.configs.config import Stage, TrainConfig

CONFIG = TrainConfig(
    name="smoke",
    model=RangeFormerConfig(dim=32, sketch=4, width=4, heads=2, loops=4),
    steps=150,
    curriculum=(Stage(1.0, 12, 24, 16),),
    loops=(2, 4),
    warmup=20,
    log_every=10,
    checkpoint_every=50,
)
