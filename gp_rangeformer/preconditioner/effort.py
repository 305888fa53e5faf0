"""How many landmarks and neighbours are worth their cost: a rule from sizes and iterations, the same on every run.

In flops of a float32 product, for two cores: a preconditioner of rank r costs about 8 n r^2 + 10 r^3 + 5e6 r to build
in every step (its cores are float64; within a quarter of the seconds measured from n = 2000 to 8000, r = 64 to 400); k
neighbours n k^2 (1150 + 1.6 r) more (n = 4000 and 8000, k = 32 and 64: within a quarter); an iteration 2 n^2 m for the
pass and 5000 n m for the rest, which is memory traffic and small operations (measured: 4700 to 5300 from n = 2000 to
8000, m = 33).

Twice the landmarks save about a quarter of the iterations of a warm step (measured with the "rows" predictor on UCI
data, n = 4000, ranks 100 to 400: 1.14, 1.00, 0.76 on pol; 2.81, 2.24, 1.67 on protein). What neighbours save depends on
how much the landmarks leave: the mean of diag(D^-1 (K - Q)), the gap. Along fits of five UCI sets (n = 4000, 64
landmarks, from cold) 32 neighbours left 80 % of the iterations at a gap of 1.7, 54 % at 11, 40 % at 39, 21 % at 200; 64
left two thirds of what 32 did, and beside 32 twice the landmarks saved 15 %. Seconds would decide better, but not
reproducibly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Enough up to n = 2000 on all sets that were tried; from 4000 on the rule soon leaves it.
STARTING_RANK = 64
# Steps over which iterations are averaged: the first warm ones take more than those that follow.
WINDOW = 4
FEWEST_NEIGHBOURS = 32
# The gap above which neighbours are of use, and the one above which a model's first step has them already.
SATURATED, HOPELESS = 2.0, 10.0
# Iterations that Lanczos on what neighbours whiten costs (measured: 6 to 8), where the learned log determinant answered
# before.
_LANCZOS = 6.0
_SAVED_BY_DOUBLING, _SAVED_BESIDE_NEIGHBOURS = 0.25, 0.15
_SAVED_BY_NEIGHBOURS, _SAVED_BY_MORE = 0.5, 0.3
_REACH = 4.0


@dataclass(frozen=True)
class Effort:
    """Landmarks, and neighbours of every other point."""

    rank: int
    neighbours: int = 0

    def cost(self, n: int) -> float:
        """Of building the preconditioner, in flops of a float32 matrix product."""
        landmarks = 8.0 * n * self.rank**2 + 10.0 * self.rank**3 + 5e6 * self.rank
        return landmarks + n * self.neighbours**2 * (1150 + 1.6 * self.rank)


def iteration_cost(n: int, columns: int) -> float:
    """Of an iteration of block CG, in the same unit."""
    return 2.0 * n * n * columns + 5000.0 * n * columns


def worthwhile_effort(
    n: int,
    columns: int,
    effort: Effort,
    iterations: int | float,
    largest: Effort,
    gap: float = 0.0,
    *,
    above: float = SATURATED,
    learned: bool = False,
) -> Effort:
    """``effort``, or twice the landmarks or neighbours (at most ``largest``), whichever saves most more than it costs.

    :param columns: right-hand sides of the block solve.
    :param iterations: of a warm step with ``effort``, on average; passes of a log determinant count as what they cost.
    :param gap: the mean of diag(D^-1 (K - Q)).
    :param above: the gap from which on neighbours are tried.
    :param learned: the learned log determinant answers, which is for plain probes.
    """
    doubled = Effort(min(2 * effort.rank, largest.rank, n), effort.neighbours)
    iteration = iteration_cost(n, columns)
    saved = _SAVED_BESIDE_NEIGHBOURS if effort.neighbours else _SAVED_BY_DOUBLING
    candidates = [(doubled, saved, 0.0)] if doubled.rank > effort.rank else []
    more = min(max(FEWEST_NEIGHBOURS, 2 * effort.neighbours), largest.neighbours)
    if gap > above and more > effort.neighbours:
        saved = _SAVED_BY_MORE if effort.neighbours else _SAVED_BY_NEIGHBOURS
        besides = _LANCZOS * iteration if learned and not effort.neighbours else 0.0
        candidates.append((Effort(effort.rank, more), saved, besides))
    gains = [
        (share * iterations * iteration - candidate.cost(n) + effort.cost(n) - besides, candidate)
        for candidate, share, besides in candidates
    ]
    gain, best = max(gains, key=lambda pair: pair[0], default=(0.0, effort))
    return best if gain > 0 else effort


@dataclass(frozen=True)
class Trial:
    """How steps were before neighbours came, in iterations: what the preconditioner cost, and the average of what
    followed, the passes of log determinants included."""

    neighbours: int
    cost: float
    iterations: float

    @classmethod
    def begin(cls, neighbours: int, cost: float, iterations: Sequence[float]) -> Trial:
        return cls(neighbours, cost, _mean(iterations))

    def failed(self, cost: float, iterations: Sequence[float]) -> bool:
        """Whether steps have become dearer."""
        return _mean(iterations) + cost > self.iterations + self.cost


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / max(len(numbers), 1)


def control_within_reach(gap: float, decay: float, control_gap: float) -> bool:
    """Whether twice the landmarks may make P so good that the gradient's control variate sets in, which is worth more
    than their cost.

    :param gap: the mean of diag(D^-1 (K - Q)).
    :param decay: smallest eigenvalue of D^-1 Q over the one at half the rank: what doubling may do to the gap. It
        promises too much where eigenvalues fall slowly, hence only gaps of a few times ``control_gap`` are tried.
    """
    return control_gap <= gap < _REACH * control_gap and gap * decay < control_gap
