"""Whether exact values say anything of the last steps: near a dtype's end they scatter by more than is left to gain."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.trust_region import Step

_STEPS = 3
_SHRUNK = 0.5  # the last step, of the first one
# What the last contradiction is of the first one, at least. Of a smooth function it falls with the third power of the
# length: to an eighth, or less.
_STAYS = 0.3


@dataclass(frozen=True)
class _Seen:
    """``contradiction``: between values and slopes, in nats per point."""

    length: float
    promised: float
    contradiction: float


class Scatter:
    """By how much values contradict their gradients along the last steps.

    Two ends of a short step of a smooth function differ by half the sum of their slopes, but for the third order.
    Where steps shrink and what is missing does not, and is more than they promise, it is the values' own.
    """

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque(maxlen=_STEPS)

    def see(self, old: Evaluated, new: Evaluated, step: Step) -> None:
        """The two ends of a step, accepted or not."""
        contradiction = abs(new.value - old.value - gained_by_slopes(old, new))
        self._seen.append(_Seen(step.length, step.promised, contradiction))

    def hides(self, decrement: float) -> bool:
        """Whether values tell nothing of what steps promise, however short they are, nor of all that is left to gain.

        Where more is left gradients may still lead there, which are known better than values.
        """
        if len(self._seen) < _STEPS or not all(seen.contradiction > seen.promised for seen in self._seen):
            return False
        first, last = self._seen[0], self._seen[-1]
        stays = last.length < _SHRUNK * first.length and last.contradiction > _STAYS * first.contradiction
        return stays and decrement < max(seen.contradiction for seen in self._seen)


def gained_by_slopes(old: Evaluated, new: Evaluated) -> float:
    """What gradients say of the difference of two values, in nats per point."""
    return 0.5 * float((new.phi - old.phi) @ (old.gradient + new.gradient))
