"""Where a fit was at every evaluation, judged by exact float64 likelihoods, as few as tell when it arrived."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from linear_operator.utils.errors import NanError, NotPSDError

from gp_rangeformer.lab.compare.audit import ExactEvaluator, Parameters

_ALL_OF = 20  # so many evaluations are all judged
_FIRST = 10  # of more, these first: a figure's points, between which arrivals are looked for


@dataclass(frozen=True)
class Place:
    """Seconds and parameters of an evaluation; the last is the end."""

    seconds: float
    parameters: Parameters


@dataclass
class Judged:
    """Exact values of some of the places that a fit was at, by their number."""

    places: Sequence[Place]
    exact: Callable[[Parameters], float]
    values: dict[int, float] = field(default_factory=dict)

    def look(self) -> None:
        """At all of a few; else at the first, the last, and some between, evenly on a logarithmic scale."""
        count = len(self.places)
        chosen = range(count) if count <= _ALL_OF else np.geomspace(1, count, _FIRST).round().astype(int) - 1
        for index in chosen:
            self.value(int(index))

    def value(self, index: int) -> float:
        if index not in self.values:
            self.values[index] = self.exact(self.places[index].parameters)
        return self.values[index]

    def find(self, sought: float) -> None:
        """Judge where ``sought`` is reached first, and the evaluation before it, by bisection: the likelihood along a
        fit rises but for a few evaluations of a line search. Nothing, where no value known reaches it."""
        after = min((index for index, value in self.values.items() if value >= sought), default=None)
        if after is None:
            return
        before = max((index for index in self.values if index < after), default=-1)
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (before, middle) if self.value(middle) >= sought else (middle, after)

    def in_order(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Seconds and values of what was judged."""
        indices = sorted(self.values)
        return tuple(self.places[i].seconds for i in indices), tuple(self.values[i] for i in indices)


def judge(fits: Sequence[Judged], gaps: Sequence[float], reference: float) -> float:
    """Judge ``fits`` to a single evaluation at every one of ``gaps`` below the optimum, which is returned: the highest
    of ``reference`` and of all values."""
    for fit in fits:
        fit.look()
    found = math.nan
    while True:
        optimum = max([reference, *(value for fit in fits for value in fit.values.values())])
        if optimum == found:
            return optimum
        for fit in fits:
            for gap in gaps:
                fit.find(optimum - gap)
        found = optimum  # unless a value that was looked at meanwhile is higher


def by(evaluator: ExactEvaluator) -> Callable[[Parameters], float]:
    """Values of ``evaluator``; minus infinity where not even float64 has a factor."""

    def value(parameters: Parameters) -> float:
        try:
            return evaluator.value({name: tensor.double() for name, tensor in parameters.items()})
        except (NanError, NotPSDError):
            return -math.inf

    return value
