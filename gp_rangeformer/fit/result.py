"""What a fit did, how good its end is, and how well that is known."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from gp_rangeformer.report import SolveReport
from gp_rangeformer.system.answers import Interval

USED_UP, TIMEOUT, NO_FURTHER_GAIN = "evaluations used up", "out of time", "no further gain"
AS_NEAR_AS_PROBES_ALLOW, AS_NEAR_AS_ROUNDING_ALLOWS = "as near as the probes allow", "as near as rounding allows"
_ENDED = (NO_FURTHER_GAIN, AS_NEAR_AS_PROBES_ALLOW, AS_NEAR_AS_ROUNDING_ALLOWS)
_HARDLY_ANYTHING = 0.01  # nats per point
LIKELIHOOD, LEFT_OUT = "log p(y)/n", "leave-one-out log p(y)/n"


def decimals(rounding: float) -> int:
    """Of an exact value: no more than rounding leaves, of which two digits show, and four at most."""
    return next((places for places in range(1, 4) if rounding >= 10.0 ** (1 - places)), 4)


def shown(value: float, error: float, rounding: float = 0.0) -> str:
    """A likelihood with half of its interval, or with what rounding leaves of an exact one."""
    places = 4 if error else decimals(rounding)
    return f"{value:.{places}f} +- {error or rounding:.{places}f}"


@dataclass(frozen=True)
class Record:
    """One evaluation: on how many points, when it was done (seconds since the fit began), the likelihood found in nats
    per point with half of its stated interval (minus infinity where it failed), and whether the step was accepted."""

    points: int
    seconds: float
    value: float
    error: float
    accepted: bool


@dataclass(frozen=True)
class FitResult:
    """The end of a fit. Values are in nats per data point, priors included, as GPyTorch's ``mll`` has them.

    ``value``: of the likelihood at the parameters that the model now has; ``error``: half the width of the interval
    that its last report states (0 where it is exact); ``rounding``: about what rounding, in K and in a factorisation,
    may have made of an exact value; ``certain``: the interval of the likelihood that holds always, or
    None. ``decrement``: what the last quadratic model says is still to be gained, ``noise``: how much of that the
    probes alone explain. ``reason``: why it stopped. ``method``: where curvature
    came from. ``evaluations``: by number of points, without second looks where a mean gained much at once
    (an offset of the targets), and without the last look at the value (where the mean was fitted once more, or the
    certain interval says little and up to 4,000 points are factorised for a better one). ``criterion``: what was
    maximised, as texts name it.
    """

    value: float
    error: float
    certain: Interval | None
    decrement: float
    noise: float
    converged: bool
    reason: str
    method: str
    evaluations: dict[int, int]
    seconds: float
    history: tuple[Record, ...]
    report: SolveReport | None
    notes: tuple[str, ...] = ()
    criterion: str = LIKELIHOOD
    rounding: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether the end is near a maximum by its own estimate: ``converged``, or steps gained nothing more and hardly
        anything is left."""
        return self.converged or (self.reason in _ENDED and self.decrement < _HARDLY_ANYTHING)

    def plain_history(self) -> list[dict[str, Any]]:
        """The history for a JSON file, which has no infinity: an evaluation that failed has the value None."""
        return [{**asdict(one), "value": one.value if math.isfinite(one.value) else None} for one in self.history]

    def summary(self) -> str:
        """One line."""
        counts = ", ".join(f"{count} on {points}" for points, count in sorted(self.evaluations.items()))
        parts = [f"{self.criterion} {shown(self.value, self.error, self.rounding)}", self.reason, f"{counts} points"]
        noise = f" (probes alone explain {self.noise:.1e})" if self.noise else ""
        parts.append(f"{self.decrement:.1e} left to gain{noise}")
        return "; ".join([*parts, *self.notes, f"{self.seconds:.2f} s"])

    def table(self) -> str:
        """The history, a line for each evaluation."""
        width = max(11, len(self.criterion))
        lines = [f"{'points':>8} {'seconds':>8} {self.criterion:>{width}} {'+-':>7}  step"]
        for row in self.history:
            word = "accepted" if row.accepted else "rejected"
            lines.append(f"{row.points:>8} {row.seconds:>8.2f} {row.value:>{width}.5f} {row.error:>7.4f}  {word}")
        return "\n".join(lines)
