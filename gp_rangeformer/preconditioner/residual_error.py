"""What rounding has made of a residual that was not summed in float64, seen in a few of its combinations.

A model of independent roundings (:attr:`~gp_rangeformer.system.linear_system.LinearSystem.rounding_scale`) is for
solutions of random signs. Of others, where signs come in stretches of rows and entries hardly differ, partial sums are
larger than any term and their roundings drift: errors were 20 times the model's (n = 2000).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.margins import in_stretches
from gp_rangeformer.system.small_cores import to_host

_COMBINATIONS = 8  # so many take a wide pass over K, half as long as 33 columns in float32
# Times the root mean square over columns and combinations: the largest column is up to the square root of their number
# above it, and a mean of eight squares below a sixteenth of what is expected once in 10^4. None was seen beyond.
_ROOM, _MOST_ROOM = 4.0, 12.0


def residual_error(
    system: LinearSystem,
    rhs: Float[Tensor, "n m"],
    solution: Float[Tensor, "n m"],
    residual: Float[Tensor, "n m"],
) -> Float64[np.ndarray, " m"]:
    """The norm of what ``residual`` is off by from rhs - A solution, per column, on the host; never below the model.

    Errors follow |x|, or the largest partial sum of x where that is larger. With columns E in units of that and normal
    numbers g the mean of |E g|^2 is the sum of their squares, which single columns are held against. In float32 one
    wide pass over K of eight columns; in float64, where nothing is wider, a bound. O(n m).
    """
    partial, length = to_host(
        solution.cumsum(0, dtype=torch.float64).abs().amax(0),
        torch.linalg.vector_norm(solution, dim=0, dtype=torch.float64),
    )
    if system.dtype == torch.float64:
        return in_stretches(system.rounding_scale * length, partial, length)
    unit = np.maximum(partial, length)
    if not (unit > 0).any():
        return np.zeros_like(unit)
    m = len(unit)
    generator = torch.Generator().manual_seed(m)
    drawn = torch.randn(m, _COMBINATIONS, generator=generator, dtype=torch.float64, device="cpu")
    weights = (drawn / torch.from_numpy(np.where(unit > 0, unit, 1.0)).unsqueeze(1)).to(rhs.device)
    off = (rhs.double() - residual.double()) @ weights - system.wide_matmul(solution.double() @ weights)
    (seen,) = to_host((off.square().sum(0).mean() / m).sqrt())
    # The model's norms of rows came along with that product.
    modelled = system.rounding_scale * length
    return np.maximum(modelled, min(_ROOM * m**0.5, _MOST_ROOM) * float(seen) * unit)
