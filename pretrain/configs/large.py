"""For GPUs: wider, deeper loops, larger matrices. Not trained by the authors."""

from gp_rangeformer.rangeformer.rangeformer import RangeFormerConfig
from pretrain.configs.config import Stage, TrainConfig

CONFIG = TrainConfig(
    name="large",
    model=RangeFormerConfig(dim=192, sketch=32, width=32, heads=8, head_dim=12, loops=12),
    steps=100_000,
    curriculum=(Stage(0.3, 80, 160, 64), Stage(0.7, 96, 384, 32), Stage(1.0, 128, 1024, 8)),
    loops=(4, 16),
    learning_rate=1e-3,
    warmup=1000,
    log_every=100,
    checkpoint_every=2000,
)
