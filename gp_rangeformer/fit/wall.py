"""Where a dtype ends: beyond, K is rounded by more than the noise, and no residual can certify a solution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gp_rangeformer.plugin.observation import Observation

# Of the smallest noise, what entries that are rounded each by its own sign may move eigenvalues by, eps max(K_ii)
# sqrt(n). Measured (kin40k, float32): at n = 36,000 systems at 0.3 and 0.9 certify, at 2.6 they do not; at n = 4000 not
# at 2.1.
_SHARE = 0.6


@dataclass(frozen=True)
class Wall:
    """The logarithm of max(K_ii) over the smallest noise is at most ``height``."""

    height: float

    @classmethod
    def of(cls, n: int, dtype: torch.dtype) -> Wall:
        return cls(math.log(_SHARE / (torch.finfo(dtype).eps * math.sqrt(n))))

    def position(self, observation: Observation) -> Tensor | None:
        """How far below its height the system stands, with a graph; None where GPyTorch has made K."""
        if observation.fused is None:
            return None
        largest = observation.fused.diagonal().max().double()
        return self.height - largest.log() + observation.noise.min().double().log()
