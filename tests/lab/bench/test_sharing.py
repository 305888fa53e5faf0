"""Products with a shared K are timed in the group that is there."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed

from gp_rangeformer.kernels.matrices.sharded import ProcessShare
from gp_rangeformer.lab.bench.sharing import measure_sharing


def test_both_ways_to_share_are_timed(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        cpu = torch.device("cpu")
        held, made = measure_sharing(600, ProcessShare.of(None, cpu), cpu)
    finally:
        distributed.destroy_process_group()
    assert 0 < held < 60
    assert 0 < made < 60
