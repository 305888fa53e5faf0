"""A likelihood at one point of a fit: its value, its gradient, how well both are known, and what curvature needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float64
from torch import Tensor

from gp_rangeformer.fit.columns import Columns, CovarianceColumns
from gp_rangeformer.plugin.observation import Observation
from gp_rangeformer.report import SolveReport
from gp_rangeformer.solvers.exact import JITTER


@dataclass
class Seen:
    """What curvature is made of. It holds K."""

    observation: Observation
    covariance: CovarianceColumns  # of phi
    mean: Columns
    follows: Bool[Tensor, " p"]  # the parameters of a mean that has been fitted to the others


@dataclass
class Evaluated:
    """The likelihood at phi, in nats per point. ``error``: half of what its report states for the value, 0 if exact;
    ``rounding``: about what rounding of an exact one may make of the difference to another, ``shift``: of both.

    ``gain``: of a mean that was fitted to the other parameters, in the value and not in ``report``, whose mean is that
    of before. ``samples``: what each probe of the log determinant says of the value, where probes were asked;
    ``group_gradients``: what groups of the gradient's probes say, near an optimum. ``seen`` holds K: drop it before the
    next evaluation. ``wall``: towards it, of which there is ``room``; None and infinite where nobody knows.
    """

    phi: Float64[Tensor, " p"]
    value: float
    error: float
    gradient: Float64[Tensor, " p"]
    report: SolveReport | None
    rounding: float = 0.0
    shift: float = 0.0
    gain: float = 0.0
    wall: Float64[Tensor, " p"] | None = None
    room: float = math.inf
    seen: Seen | None = None
    samples: Float64[Tensor, " k"] | None = None
    group_gradients: Float64[Tensor, "g p"] | None = None

    @property
    def resolution(self) -> float:
        """What rounding leaves of an exact value."""
        return self.rounding + self.shift

    @property
    def jittered(self) -> bool:
        """Whether it is the likelihood of more noise: A was not positive definite to rounding."""
        return self.report is not None and any(note.startswith(JITTER) for note in self.report.notes)
