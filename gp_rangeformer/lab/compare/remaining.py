"""How long a fit may still take, as far as the evaluations so far say."""

from __future__ import annotations

from collections.abc import Sequence

from gp_rangeformer.fit import Record
from gp_rangeformer.regression.choice import MOST_ROWS

# Evaluations on all rows of a fit, and those still to come of one that takes longer. Of 72 fits (eight data sets, three
# kernels, 300 to 2000 rows) two of three estimates were within a factor of two, five of six within a factor of three.
_USUAL, _FURTHER = 12, 6
_RECENT = 3  # evaluations: they become harder towards the end, and the first one is easier than all others


class Remaining:
    """Told of every evaluation of a fit of kernels in turn, it says what is left.

    :param kernels: that are fitted, in this order; of several all but the best are fitted to a part of the rows alone.
    :param rows: that are fitted to.
    """

    def __init__(self, kernels: Sequence[str], rows: int) -> None:
        self._kernels, self._rows = list(kernels), rows
        self._comparing = len(self._kernels) > 1
        self._part = min(rows, MOST_ROWS) if self._comparing else rows  # that the fit which runs is of
        self._name = ""
        self._finished: list[float] = []  # seconds that the fits of other kernels took
        self._whole: list[float] = []  # seconds that evaluations on all of its rows took
        self._last = 0.0  # seconds, when the last evaluation was done

    def __call__(self, name: str, record: Record) -> str:
        """``about 40 s left``, to a digit; nothing before the second evaluation on all rows."""
        final = record.points == self._rows > self._part
        if final:
            self._comparing, self._part = False, self._rows
        if final or name != self._name:
            if self._name:
                self._finished.append(self._last)
            self._name, self._whole, self._last = name, [], 0.0
        if record.points == self._part:
            self._whole.append(record.seconds - self._last)
        self._last = record.seconds
        recent = self._whole[1:][-_RECENT:]
        if not recent:
            return ""
        left, then = max(_USUAL - len(self._whole), _FURTHER) * sum(recent) / len(recent), ""
        if self._comparing:
            others = len(self._kernels) - 1 - self._kernels.index(name)
            mean = sum(self._finished) / len(self._finished) if self._finished else record.seconds + left
            left += others * mean
            then = f", then all {self._rows} rows" if self._part < self._rows else ""
        return f"{about(left)} left{then}"


def about(seconds: float) -> str:
    """To a digit, in the unit that has few."""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * length or unit == "h":
            return f"about {max(float(f'{seconds / length:.0e}'), 1):.0f} {unit}"
    raise AssertionError
