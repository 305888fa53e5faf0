"""What rounding leaves of a likelihood that a factorisation in float64 has answered.

L L' = A + E, with entries of E of deviation s and signs of their own: those of K are rounded by up to half of
eps max(A_ii), and the factorisation sums up to n terms for each, whose roundings grow as sqrt(n) (Higham and Mary
2019). For x = A^-1 (y - m) the first order of log p(y), (x'E x - tr(A^-1 E)) / 2, has at most the deviation
s (|A^-1|_F + |x|^2) / sqrt(2). The diagonal, often one number, has one sign: up to eps max(A_ii) (tr A^-1 + |x|^2) / 2
between two values. The mean of the second order, of size s^2 ((tr A^-1)^2 + |A^-1|_F^2) / 4 and s^2 |x|^2 tr A^-1 / 2,
is nearly the same at neighbouring parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gp_rangeformer.plugin.observation import Observation
from gp_rangeformer.report import SolveReport
from gp_rangeformer.solvers.exact import ExactWeight
from gp_rangeformer.system.margins import first_order

# s over eps max(A_ii): u / sqrt(3) of an entry, and times sqrt(n) what MKL's blocked factorisations add: 0.05 to 0.075,
# n = 150 to 1000, RBF and Matern kernels. (Up to n = 128 they add next to nothing.)
_OF_AN_ENTRY, _OF_A_SUM = 0.29, 0.07
# Of the certain interval's half, where a factorisation answers (n = 1100, float32: 0.0018; values scatter by 2e-4).
_ROUNDING_SHARE = 0.2


@dataclass(frozen=True)
class Rounding:
    """Of log p(y) / n, in nats: what values at neighbouring parameters scatter by, two deviations, and about what they
    are all off by."""

    spread: float
    shift: float


def rounding_of(observation: Observation) -> Rounding | None:
    """O(n^3 / 3) for A^-1; None where no factorisation in the dtype of K, float64, has answered."""
    weight = observation.evaluation.weight
    if not isinstance(weight, ExactWeight) or weight.factor is None or weight.solutions.dtype != torch.float64:
        return None
    with torch.no_grad():
        factor = weight.factor.reshape(weight.factor.shape[-2:])
        n = len(factor)
        inverse = torch.cholesky_inverse(factor)
        trace, norm = float(inverse.diagonal().sum()), float(torch.linalg.matrix_norm(inverse))
        square = float(weight.solutions.square().sum())
        # The squared norm of a factor's row is what was factorised.
        largest = float(factor.square().sum(1).max())
    unit = torch.finfo(torch.float64).eps * largest
    deviation = (_OF_AN_ENTRY + _OF_A_SUM * math.sqrt(n)) * unit
    first = math.sqrt(2) * deviation * (norm + square) + 0.5 * unit * (trace + square)
    second = deviation**2 * (0.25 * (trace**2 + norm**2) + 0.5 * square * trace)
    return Rounding(first / n, second / n)


def stated_errors(report: SolveReport, points: int) -> tuple[float, float, float]:
    """Half of a likely interval; of an exact value what rounding scatters it by, and shifts it and its neighbours."""
    if report.mll_statistical is not None:
        return 0.5 * report.mll_statistical.width / points, 0.0, 0.0
    if report.mll_interval is None:
        return 0.0, 0.0, 0.0
    width = report.mll_interval.width
    scattered = first_order(width)
    return 0.0, _ROUNDING_SHARE * 0.5 * scattered / points, 0.5 * (width - scattered) / points
