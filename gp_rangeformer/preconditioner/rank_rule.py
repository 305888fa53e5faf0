"""How many landmarks are worth their cost: a rule from sizes and iteration counts, the same on every run.

A preconditioner of rank r costs about 8 n r^2 + 10 r^3 + 5e6 r flops of a float32 product to build in every step (its
cores are float64; within a quarter of the seconds measured from n = 2000 to 8000, r = 64 to 400); an iteration 2 n^2 m
for the pass and 5000 n m for the rest, which is memory traffic and small operations (measured: 4700 to 5300 from
n = 2000 to 8000, m = 33, two cores). Twice the landmarks save about a quarter of the iterations of a warm step
(measured with the "rows" predictor on UCI data, n = 4000, ranks 100 to 400: 1.14, 1.00, 0.76 on pol; 2.81, 2.24, 1.67
on protein). Seconds would decide better, but not reproducibly.
"""

from __future__ import annotations

# Enough up to n = 2000 on all sets that were tried; from 4000 on the rule soon leaves it.
STARTING_RANK = 64
# Steps over which iterations are averaged: the first warm ones take more than those that follow.
WINDOW = 4
_SAVED_BY_DOUBLING = 0.25
_REACH = 4.0


def building_cost(n: int, rank: int) -> float:
    """Of a Nystrom preconditioner, in flops of a float32 matrix product."""
    return 8.0 * n * rank**2 + 10.0 * rank**3 + 5e6 * rank


def iteration_cost(n: int, columns: int) -> float:
    """Of an iteration of block CG, in the same unit."""
    return 2.0 * n * n * columns + 5000.0 * n * columns


def worthwhile_rank(n: int, columns: int, rank: int, iterations: int | float, largest: int) -> int:
    """``rank``, or twice that (at most ``largest``) where it saves more than it costs.

    :param columns: right-hand sides of the block solve.
    :param iterations: of a warm step with ``rank`` landmarks, on average.
    """
    doubled = min(2 * rank, largest, n)
    if doubled <= rank:
        return rank
    saved = _SAVED_BY_DOUBLING * iterations * iteration_cost(n, columns)
    return doubled if saved > building_cost(n, doubled) - building_cost(n, rank) else rank


def control_within_reach(gap: float, decay: float, control_gap: float) -> bool:
    """Whether twice the landmarks may make P so good that the gradient's control variate sets in, which is worth more
    than their cost.

    :param gap: the mean of diag(D^-1 (K - Q)).
    :param decay: smallest eigenvalue of D^-1 Q over the one at half the rank: what doubling may do to the gap. It
        promises too much where eigenvalues fall slowly, hence only gaps of a few times ``control_gap`` are tried.
    """
    return control_gap <= gap < _REACH * control_gap and gap * decay < control_gap
