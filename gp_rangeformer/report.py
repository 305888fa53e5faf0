"""What happened in a call: who answered, how accurately, at what cost, and why."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from gp_rangeformer.system.answers import Interval
from gp_rangeformer.system.reason import Reason

FAILURES = frozenset(
    {
        Reason.MAX_PASSES,
        Reason.STAGNATION,
        Reason.ROUNDING,
        Reason.ESTIMATES,
        Reason.NOT_PSD,
        Reason.NOT_FINITE,
        Reason.PAUSED,
        Reason.ZERO_NOISE,
    },
)


# Nats per point and unit of log parameter: a standard error below this is never too large. Where training converges the
# gradient vanishes and its relative error grows without end, but its error no longer moves anything.
NEGLIGIBLE_ERROR = 0.01
_logger = logging.getLogger("gp_rangeformer")


class FallbackWarning(RuntimeWarning):
    """The RangeFormer solver could not certify its answer; the exact path answered instead."""


class OutsideToleranceWarning(RuntimeWarning):
    """In ``settings.solver(Direct())``: the network's own answer is outside tolerance, and it was used."""


@dataclass(frozen=True)
class HyperparameterGradient:
    """d log p(y) / d log of one hyperparameter (its constrained value), in nats, and its standard error over the choice
    of probes."""

    name: str
    value: float
    standard_error: float


@dataclass(frozen=True)
class GradientError:
    """How well the gradient of one training step is known, as far as the choice of probes decides; the tolerance of the
    solves comes on top. Of a fused kernel every parameter is an entry, else the noise and the scale of K. ``age``:
    training steps since it was measured."""

    entries: tuple[HyperparameterGradient, ...]
    age: int = 0

    @property
    def relative(self) -> float:
        """The standard error over the gradient, norms over all entries. Where training converges that vanishes."""
        return _over(self._norm("standard_error"), self._norm("value"))

    def excess(self, tolerance: float, negligible: float) -> float:
        """The standard error over the one allowed: ``tolerance`` of the gradient, or ``negligible`` nats."""
        return _over(self._norm("standard_error"), max(tolerance * self._norm("value"), negligible))

    def _norm(self, field: str) -> float:
        return math.hypot(*(getattr(entry, field) for entry in self.entries))


def _over(part: float, whole: float) -> float:
    return part / whole if whole > 0 else (0.0 if part == 0 else math.inf)


@dataclass(frozen=True)
class SolveReport:
    """One call, as :func:`gp_rangeformer.last_report` returns it. Batches are one call: sums, and the worst residual.

    Intervals are in nats and for the whole data set: ``mll`` is log p(y) itself, not divided by n. A report is True,
    unless there was no call yet (``Reason.NOT_ASKED``).
    """

    operation: str  # inv_quad_logdet, solve, root_inv_decomposition; none
    solver: str  # rangeformer, direct, exact, gpytorch; none
    reason: Reason
    n: int
    batch_shape: tuple[int, ...] = ()
    dtype: str = ""
    device: str = ""
    columns: int = 0  # right-hand sides, probes not counted
    passes: int = 0  # products with K
    columns_multiplied: int = 0  # columns over all passes
    iterations: int = 0
    residual: float = 0.0  # largest certified relative residual
    logdet: float | None = None
    logdet_interval: Interval | None = None  # rigorous
    logdet_statistical: Interval | None = None
    logdet_level: float | None = None
    logdet_method: str | None = None  # exact, lanczos, learned or quadrature
    mll: float | None = None
    mll_interval: Interval | None = None  # rigorous
    mll_statistical: Interval | None = None
    gradient: GradientError | None = None  # None: exact, not asked for, or not measured, which a note says
    # Of predictive means, certified for K as its dtype holds it, over the deviation of an observation.
    mean_error: float | None = None
    # Of an inverse root at training points, relative to predictive variance + noise; elsewhere it may be larger.
    variance_error: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def fell_back(self) -> bool:
        """Whether the RangeFormer solver was tried and could not certify its answer."""
        return self.reason in FAILURES

    def __bool__(self) -> bool:
        return self.reason is not Reason.NOT_ASKED

    def summary(self) -> str:
        """One line."""
        if not self:
            return self.reason.value
        parts = [f"{self.operation} n={self.n} -> {self.solver}"]
        if self.solver == "gpytorch":
            return f"{parts[0]} ({self.reason.value})"
        if self.iterations or self.passes:
            parts.append(f"{self.iterations} iterations, {self.passes} passes")
        parts.append(f"residual {self.residual:.1e}")
        if self.mll is not None and self.mll_interval is not None:
            parts.append(f"log p(y)/n {self.mll / self.n:.4f}")
            interval = self.mll_interval.scaled(1 / self.n)
            parts.append("certainly in [{}, {}]".format(*interval.outward(4)))
            if self.mll_statistical is not None and self.logdet_level is not None:
                half = 0.5 * self.mll_statistical.width / self.n
                parts.append(f"+- {half:.4f} at {self.logdet_level:.0%}")
        if self.gradient is not None:
            parts.append(f"gradient +- {self.gradient.relative:.1%}")
        if self.mean_error is not None:
            parts.append(f"mean error {self.mean_error:.1e}")
        if self.variance_error is not None:
            parts.append(f"variance error {self.variance_error:.1e}")
        if self.reason is not Reason.CONVERGED:
            parts.append(self.reason.value)
        parts.extend(self.notes)
        parts.append(f"{self.seconds:.3f} s")
        return "; ".join(parts)


@dataclass(repr=False)
class ReportCollection:
    """Reports gathered by :func:`collect_reports`, in the order of the calls. ``print`` shows their totals,
    :meth:`summary` also who answered what and why."""

    reports: list[SolveReport] = field(default_factory=list)
    thread: int | None = field(default=None, compare=False)  # whose calls alone; None: everybody's

    @property
    def counts(self) -> Counter[tuple[str, str, str]]:
        """(operation, solver, reason name) -> number of calls."""
        return Counter((report.operation, report.solver, report.reason.name) for report in self.reports)

    @property
    def fallbacks(self) -> int:
        return sum(report.fell_back for report in self.reports)

    @property
    def passes(self) -> int:
        """Products with K."""
        return sum(report.passes for report in self.reports)

    @property
    def seconds(self) -> float:
        return math.fsum(report.seconds for report in self.reports)

    @property
    def worst(self) -> SolveReport | None:
        """The call with the largest residual, or with one that is NaN, of those that the plug-in answered."""
        answered = [report for report in self.reports if report.solver != "gpytorch"]
        return max(answered, key=lambda report: _nan_as_infinity(report.residual), default=None)

    def summary(self) -> str:
        """The totals and the worst residual, then a line for every operation, solver and reason, most calls first."""
        if not self.reports:
            return Reason.NOT_ASKED.value
        lines = [_totals(self)]
        if self.worst is not None:
            lines[0] += f"; worst residual {self.worst.residual:.1e} ({self.worst.operation} n={self.worst.n})"
        for (operation, solver, reason), count in self.counts.most_common():
            lines.append(f"{count} x {operation} -> {solver}: {Reason[reason].value}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {_totals(self)}>"

    def __iter__(self) -> Iterator[SolveReport]:
        return iter(self.reports)

    def __len__(self) -> int:
        return len(self.reports)

    def __getitem__(self, index: int) -> SolveReport:
        return self.reports[index]


def _totals(reports: ReportCollection) -> str:
    calls = f"{len(reports)} call{'s' * (len(reports) != 1)}"
    return f"{calls}, {reports.fallbacks} fell back; {reports.passes} passes, {reports.seconds:.3f} s"


def _nan_as_infinity(value: float) -> float:
    return math.inf if math.isnan(value) else value


_lock = threading.Lock()
_last = SolveReport("none", "none", Reason.NOT_ASKED, n=0)
_collections: list[ReportCollection] = []


def last_report() -> SolveReport:
    """The report of the most recent call in this process while the flag was on. Declined calls report too.

    Before the first one, most often because nothing was computed inside ``settings.rangeformer()``, the report is False
    as a truth value, its reason is ``NOT_ASKED``, and its summary says where the flag is on.
    """
    return _last


@contextlib.contextmanager
def collect_reports(own_thread: bool = False) -> Iterator[ReportCollection]:
    """Gather the report of every call made inside the context, in any thread.

    :param own_thread: only those of calls by the thread that collects.
    """
    collection = ReportCollection(thread=threading.get_ident() if own_thread else None)
    with _lock:
        _collections.append(collection)
    try:
        yield collection
    finally:
        with _lock:
            # by identity: two collections with equal contents are equal
            _collections[:] = [other for other in _collections if other is not collection]


def publish(report: SolveReport) -> None:
    """Make ``report`` the last one, hand it to collectors, log it, warn about a fallback."""
    global _last
    with _lock:
        _last = report
        for collection in _collections:
            if collection.thread in (None, threading.get_ident()):
                collection.reports.append(report)
    if _logger.isEnabledFor(logging.DEBUG):
        _logger.debug(report.summary())
    if report.reason is Reason.DIRECT:
        warnings.warn(
            f"{report.operation} at n={report.n}, residual {report.residual:.1e}: {report.reason.value}",
            OutsideToleranceWarning,
            stacklevel=3,
        )
    if report.fell_back:
        warnings.warn(
            f"{report.operation} at n={report.n} was answered by the exact path: {report.reason.value}",
            FallbackWarning,
            stacklevel=3,
        )
