"""The tail of the log determinant from an estimator that needs no pass over K, and when not to believe it.

An estimator (a trained network, or a quadrature rule) says how much log|A| exceeds log|P|. Its value is clipped to the
rigorous interval; it hands over to Lanczos, with a note, when it says itself that it is not sure enough, when the
system is unlike those of training, or when Lanczos, asked at the first step of a model and at every 25th, disagrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.logdet.lanczos import FLOOR
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.system.answers import Interval, LogDet, LogDetMethod
from gp_rangeformer.system.linear_system import LinearSystem

CHECK_EVERY = 25


@dataclass(frozen=True)
class TailEstimate:
    """z = (log|A| - log|P|) / n in nats per point.

    ``interval`` contains it with probability ``level``, or None without such a statement. ``definite``: False where the
    evidence disproves that K is positive semi-definite. ``refusal``: why the estimator itself would not be used.
    """

    value: float
    interval: Interval | None
    level: float | None
    method: LogDetMethod
    definite: bool = True
    refusal: str | None = None

    @property
    def half_width(self) -> float:
        """Half the width of the interval, in nats per point; zero without one."""
        return 0.0 if self.interval is None else 0.5 * self.interval.width


@runtime_checkable
class TailEstimator(Protocol):
    """Reads the preconditioner and the probe solutions of one step; no pass over K."""

    def __call__(
        self,
        system: LinearSystem,
        preconditioner: NystromPreconditioner,
        probes: Float[Tensor, "n p"],
        solutions: Float[Tensor, "n p"],
        quadratic: Float[Tensor, " p"],
    ) -> TailEstimate: ...


def objection(estimate: TailEstimate, tolerance: float) -> str | None:
    """Why ``estimate`` should not be used, or None.

    :param tolerance: largest half width of its interval, in nats per point.
    """
    if estimate.refusal is not None:
        return estimate.refusal
    if not math.isfinite(estimate.value):
        return "its evidence is not finite"
    if not estimate.definite:
        return "the probe solutions contradict a positive semi-definite kernel matrix"
    if estimate.half_width > tolerance:
        return f"its uncertainty of {estimate.half_width:.2g} nats per point exceeds logdet_tolerance"
    return None


def disagreement(estimate: TailEstimate, lanczos: LogDet, base: float, n: int, tolerance: float) -> str | None:
    """Why ``estimate`` and Lanczos cannot both be right, or None: they differ by more than both allow together.

    :param base: log|P|.
    """
    half = 0.5 * lanczos.statistical.width / n if lanczos.statistical is not None else 0.0
    difference = abs(base / n + estimate.value - lanczos.value / n)
    if difference > half + tolerance:
        return f"Lanczos differs from it by {difference:.2g} nats per point"
    return None


def tail_logdet(estimate: TailEstimate, rigorous: Interval, base: float, n: int) -> LogDet:
    """log|A| = log|P| + n z, both value and interval within the rigorous one."""
    interval = None if estimate.interval is None else estimate.interval.widened(FLOOR).scaled(float(n)).shifted(base)
    return LogDet(
        value=rigorous.clip(base + n * estimate.value),
        rigorous=rigorous,
        statistical=None if interval is None else interval.within(rigorous),
        level=estimate.level,
        method=estimate.method,
    )
