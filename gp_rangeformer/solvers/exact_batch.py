"""The exact path of many systems at once: one batched factorisation, and the evidence in a few operations.

Below some hundred points a step is bound by the number of operations, not by their arithmetic. So the elements of a
batch (a single matrix is a batch of one) share every operation, and what a certificate asks is computed for all of them
together. The formulas are those of :mod:`~gp_rangeformer.solvers.exact`; whatever is not plainly well there (no
factor, a residual above the tolerance, no noise) is left to it, element by element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.allocation.free_memory import Demand
from gp_rangeformer.allocation.workspace import shortage
from gp_rangeformer.kernels.native.product import multiply_wide
from gp_rangeformer.preconditioner.certificate import FEW_COLUMNS
from gp_rangeformer.solvers.exact import ExactWeight
from gp_rangeformer.solvers.factorisation import MATRICES, solve_by_factor
from gp_rangeformer.system.answers import Interval
from gp_rangeformer.system.margins import (
    ALL_ROUNDED_ALIKE,
    factor_rounding,
    in_stretches,
    logdet_margin,
    product_rounding,
    quadratic_margin,
)
from gp_rangeformer.system.small_cores import to_host

# Points up to which float32 matrices are multiplied in float64 by a copy, so many numbers at a time, and beyond which
# one by one by compiled code without it (16 of 200: 0.37 ms against 0.52; 4 of 400: 0.36 against 0.20; 500 of 20: 0.14
# against 16 and more).
_COPIED_WIDE, _WIDE_NUMBERS = 200, 2**20


@dataclass(frozen=True)
class BatchEvaluation:
    """What one training step asks of every element; intervals and sums are of all elements together, in nats."""

    weight: ExactWeight
    inv_quad: Float64[np.ndarray, "count m"]
    logdet: Float64[np.ndarray, " count"] | None
    residual: float  # largest certified relative one
    inv_quad_interval: Interval
    logdet_interval: Interval | None
    factorised_in: torch.dtype

    def outputs(self, like: Tensor) -> tuple[Float[Tensor, "count m"], Float[Tensor, " count"]]:
        """Quadratic forms and log determinants, as new tensors in the dtype and on the device of ``like``."""
        logdet = np.zeros(len(self.inv_quad)) if self.logdet is None else self.logdet
        return like.new_tensor(self.inv_quad), like.new_tensor(logdet)


def evaluate_batch(
    kernel: Float[Tensor, "count n n"],
    noise: Float[Tensor, "count n"],
    rhs: Float[Tensor, "count n m"],
    tolerance: float,
    with_logdet: bool,
    asymmetry: float = 0.0,
) -> BatchEvaluation | None:
    """Quadratic forms, log|A| and the weight of their gradient, or None where single systems must be looked at.

    :param kernel: symmetric; left as it is. O(count n^3 / 3).
    :param rhs: of few columns (:data:`~gp_rangeformer.preconditioner.certificate.FEW_COLUMNS`).
    :param asymmetry: as in :mod:`~gp_rangeformer.system.margins`.
    """
    n, m = rhs.shape[-2:]
    if m > FEW_COLUMNS:
        return None
    diagonal, noises = to_host(kernel.diagonal(dim1=-2, dim2=-1), noise)
    smallest, largest = noises.min(-1), (diagonal + noises).max(-1)
    if not (smallest.min() > 0 and largest.max() < math.inf):  # NaN is neither
        return None
    condition = largest / smallest
    dtype = kernel.dtype
    if dtype == torch.float32 and factor_rounding(n, dtype, condition).max() > 0.1 * tolerance:
        dtype = torch.float64
    fits = shortage(Demand(MATRICES * len(kernel), 0, dtype.itemsize), n, kernel.device) is None
    factor = _factorised(kernel, noise, dtype) if fits else None
    if factor is None:
        return None
    unrounded = solve_by_factor(factor, rhs.to(dtype))
    value = unrounded.to(kernel.dtype)
    residual = _wide_residual(kernel, noise, rhs, value)
    # O(n) numbers in one transfer: what follows is cheaper on the host, whatever the device.
    b, x, r, answer, pivots = to_host(rhs, value, residual, unrounded, factor.diagonal(dim1=-2, dim2=-1))
    norm, length, left = (_norms(block) for block in (b, x, r))
    norm_of_row = n**0.5 * largest[:, None]
    if kernel.dtype == torch.float64:  # where nothing is wider
        modelled = product_rounding(kernel.dtype, norm_of_row) * ALL_ROUNDED_ALIKE * length
        error = left + in_stretches(modelled, np.abs(x.cumsum(1)).max(1), length)
    else:
        error = left + torch.finfo(kernel.dtype).eps * norm_of_row * length
    if asymmetry:  # the residual is one of the rows as they are
        (skew,) = to_host(0.5 * (kernel @ value - kernel.mT @ value))
        error = error + _norms(skew)
    relative = np.divide(error, norm, out=error.copy(), where=norm > 0)
    logdet = 2 * np.log(pivots).sum(-1)
    if not (m == 0 or (relative.max() <= tolerance and norm.max() < math.inf)) or not np.isfinite(logdet).all():
        return None
    quadratic = _inner(b, answer)
    room = quadratic_margin(n, kernel.dtype, asymmetry, largest[:, None], condition[:, None], length**2)
    if dtype == torch.float32:
        quadratic, room = quadratic + _inner(r, x), room + error**2 / smallest[:, None]
    margin = logdet_margin(n, kernel.dtype, asymmetry, condition) + n * factor_rounding(n, dtype, condition)
    return BatchEvaluation(
        weight=ExactWeight(factor if with_logdet else None, value),
        inv_quad=quadratic,
        logdet=logdet if with_logdet else None,
        residual=float(relative.max()) if m else 0.0,
        inv_quad_interval=_interval(quadratic, room),
        logdet_interval=_interval(logdet, margin) if with_logdet else None,
        factorised_in=dtype,
    )


def _inner(
    one: Float64[np.ndarray, "count n m"], other: Float64[np.ndarray, "count n m"]
) -> Float64[np.ndarray, "count m"]:
    return np.einsum("cnm,cnm->cm", one, other)


def _norms(block: Float64[np.ndarray, "count n m"]) -> Float64[np.ndarray, "count m"]:
    return np.sqrt(_inner(block, block))


def _interval(value: np.ndarray, margin: np.ndarray) -> Interval:
    return Interval(float((value - margin).sum()), float((value + margin).sum()))


def _factorised(kernel: Tensor, noise: Tensor, dtype: torch.dtype) -> Float[Tensor, "count n n"] | None:
    # In place: seen from its other side a symmetric matrix has the order of LAPACK, and no copy of it is made.
    factor = kernel.to(dtype, copy=True, memory_format=torch.contiguous_format)
    factor.diagonal(dim1=-2, dim2=-1).add_(noise)
    factor = factor.mT
    info = torch.empty(len(factor), dtype=torch.int32, device=factor.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    return None if info.any() else factor


def _wide_residual(kernel: Tensor, noise: Tensor, rhs: Tensor, value: Tensor) -> Float64[Tensor, "count n m"]:
    """b - A x, summed in float64."""
    wide = value.double()
    if kernel.dtype == torch.float64:
        product = torch.bmm(kernel, wide)
    elif kernel.shape[-1] <= _COPIED_WIDE:
        at_once = max(1, _WIDE_NUMBERS // kernel.shape[-1] ** 2)
        pieces = zip(kernel.split(at_once), wide.split(at_once), strict=True)
        product = torch.cat([torch.bmm(some.double(), columns) for some, columns in pieces])
    else:
        product = torch.stack([multiply_wide(one, column)[0] for one, column in zip(kernel, wide, strict=True)])
    return rhs.double() - product.addcmul_(noise.double().unsqueeze(-1), wide)
