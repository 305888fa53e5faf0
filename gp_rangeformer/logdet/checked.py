"""The value of log|A| in a training step: by Lanczos, or by a tail estimator that Lanczos checks now and then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.logdet.estimate import CHECK_EVERY, TailEstimate, disagreement, objection, tail_logdet
from gp_rangeformer.logdet.lanczos import LEVEL, lanczos_logdet
from gp_rangeformer.preconditioner.certificate import logdet_bounds
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.system.answers import LogDet
from gp_rangeformer.system.linear_system import LinearSystem

# Half the width of a rigorous interval, in tolerances, below which it is enough.
_NARROW = 0.1


def lanczos_value(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    *,
    truncation: float,
    share: float | None = None,
    vecchia: VecchiaPreconditioner | None = None,
    image: Float[Tensor, "n p"] | None = None,
) -> LogDet | None:
    """log|P| plus the quadrature of :func:`~gp_rangeformer.logdet.lanczos.lanczos_logdet`, value and interval within
    the rigorous one; None if the Ritz values disprove that K is positive semi-definite.

    :param vecchia: the P of the quadrature, where there is one: nearer to A, so that it takes fewer passes and varies
        less with the probes.
    :param image: of the probes, as :func:`~gp_rangeformer.logdet.lanczos.lanczos_logdet` takes it.
    """
    nearest = vecchia or preconditioner
    trace = lanczos_logdet(system, nearest, probes, share=share, image=image, truncation=truncation)
    if not trace.smallest > nearest.least_ritz_value(system):
        return None
    base = nearest.logdet()
    rigorous = logdet_bounds(system, preconditioner, vecchia)
    return LogDet(
        value=rigorous.clip(base + trace.value),
        rigorous=rigorous,
        statistical=trace.interval.shifted(base).within(rigorous),
        level=LEVEL,
        passes=trace.passes,
        method="lanczos",
        samples=tuple(base + sample for sample in trace.samples),
    )


def checked_logdet(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    memory: Memory,
    estimate: TailEstimate,
    tolerance: float,
    lanczos: Callable[[], LogDet | None],
    vecchia: VecchiaPreconditioner | None = None,
) -> LogDet | None:
    """The estimate's value where nothing speaks against it, else Lanczos', with a note; None if that disproves K.

    Lanczos is asked at a model's first estimate with an interval and at every 25th; what it finds then holds until the
    next check. It is not asked where the rigorous interval alone says more than it would.

    :param tolerance: of the estimate's uncertainty, in nats per point.
    """
    n, base = system.size, preconditioner.logdet()
    rigorous = logdet_bounds(system, preconditioner, vecchia)
    if estimate.definite and math.isfinite(estimate.value) and rigorous.width <= 2 * _NARROW * tolerance * n:
        return tail_logdet(estimate, rigorous, base, n)
    problem = objection(estimate, tolerance)
    checked = estimate.interval is not None and memory.take_tail_check(CHECK_EVERY)
    if problem is None and not checked and memory.tail_objection is None:
        return tail_logdet(estimate, rigorous, base, n)
    found = lanczos()
    if found is None:
        return None
    if checked and problem is None:
        memory.tail_objection = disagreement(estimate, found, base, n, tolerance)
    problem = problem or memory.tail_objection
    if problem is None:
        return replace(tail_logdet(estimate, found.rigorous, base, n), passes=found.passes)
    return replace(found, note=f"the {estimate.method} log determinant handed over to Lanczos: {problem}")
