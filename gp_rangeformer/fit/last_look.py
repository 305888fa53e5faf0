"""How well the likelihood of a fit's end is known: one value more, where that says what the last report does not."""

from __future__ import annotations

from gp_rangeformer import settings
from gp_rangeformer.fit.ascent import NUMERICAL
from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.objective import Objective, is_likelihood
from gp_rangeformer.solvers.exact import Exact

_SMALL_GAIN = 0.01  # of an interval's width
_WIDE = 0.1  # nats per point, of a certain interval: fits with little noise leave several (kin40k, n = 3000: 2.6)
# Points up to which it is worth a factorisation: 0.8 s at 3000, 1.3 at 4000, 2.5 in float64, of fits of 8 to 20 s.
_FACTORISED = 4000


def last_look(objective: Objective, point: Evaluated) -> Evaluated:
    """``point`` with the value and the report that a fit ends with.

    A factorisation takes about a second and leaves rounding open, where a certified solve may leave more than the
    likelihood's whole scale: of log|A| it knows certainly what its preconditioner sees. And a mean that was fitted to
    the other parameters may have gained more since than a small part of what the report leaves open.
    """
    certain = None if point.report is None else point.report.mll_interval
    if point.report is None or certain is None:
        return point
    wide = is_likelihood(objective.mll) and certain.width > _WIDE * objective.points
    if not wide or point.report.solver == "exact" or objective.points > _FACTORISED:
        return objective.seen_again(point) if point.gain * objective.points > _SMALL_GAIN * certain.width else point
    try:
        with settings.solver(Exact()):
            found = objective.seen_again(point)
    except NUMERICAL:
        return point
    return point if found.jittered else found
