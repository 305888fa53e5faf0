from __future__ import annotations

from pretrain.experiments.downstream.command import main

main()
