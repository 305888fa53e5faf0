from __future__ import annotations

from pretrain.experiments.predictor.command import main

main()
