from __future__ import annotations

from pretrain.experiments.ranges.command import main

main()
