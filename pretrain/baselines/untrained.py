"""The control of every learned part: the same loop before training."""

from __future__ import annotations

import torch

from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerConfig


def untrained(config: RangeFormerConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> RangeFormer:
    """A block Krylov method with Galerkin solves in its range, in eval mode and without gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RangeFormer(config).to(dtype).eval().requires_grad_(False)
