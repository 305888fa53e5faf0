"""Where a dtype ends: beyond, K is rounded by more than the noise, and no residual can certify a solution, or no
factorisation finds A positive definite."""

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
# In float64 the factorisation, which has nothing wider, rounds as well: each entry by a sum of n terms. The largest
# eigenvalue of its error, measured (RBF and Matern kernels, MKL): 0.13 to 0.19 times eps max(K_ii) n for n = 150 to
# 1000, a tenth of that for n up to 128. Its eigenvectors are others than those of the smallest noise, which may be half
# as large; where a factorisation fails all the same no step goes.
_FACTORISED_SHARE = 11.0
AT_THE_WALL = 0.5  # of a logarithm to either side: it is no line to rounding


@dataclass(frozen=True)
class Wall:
    """The logarithm of max(K_ii) over the smallest noise is at most ``height``."""

    height: float

    @classmethod
    def of(cls, n: int, dtype: torch.dtype) -> Wall:
        share = _FACTORISED_SHARE / n if dtype == torch.float64 else _SHARE / math.sqrt(n)
        return cls(math.log(share / torch.finfo(dtype).eps))

    def position(self, observation: Observation) -> Tensor | None:
        """How far below its height the system stands, with a graph; None where GPyTorch has made K."""
        if observation.fused is None:
            return None
        largest = observation.fused.diagonal().max().double()
        return self.height - largest.log() + observation.noise.min().double().log()
