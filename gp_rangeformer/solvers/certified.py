"""The certified solver's arguments, the one place of its defaults, and its preconditioner.

Ranges are proposed (landmarks, memory), linear algebra certifies: landmarks -> P = Q + D -> predict X from the memory
-> residual (one pass) -> block CG -> bounds (:mod:`~gp_rangeformer.solvers.certified_prepared`). Whatever does not
certify is answered by the exact path, with the reason.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.gpu import operations
from gp_rangeformer.kernels.native.neighbours import MOST_NEIGHBOURS
from gp_rangeformer.logdet import learned
from gp_rangeformer.logdet.estimate import TailEstimator
from gp_rangeformer.preconditioner.effort import FEWEST_NEIGHBOURS, HOPELESS, SATURATED, STARTING_RANK, Effort
from gp_rangeformer.preconditioner.landmarks import Landmarks, rp_cholesky_landmarks, uniform_landmarks
from gp_rangeformer.preconditioner.neighbours import find_neighbours
from gp_rangeformer.preconditioner.nystrom import (
    NystromPreconditioner,
    PreconditionerError,
    nystrom_preconditioner,
)
from gp_rangeformer.preconditioner.unseen_nystrom import UnseenNystrom
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner, vecchia_preconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.arguments import (
    check_above,
    check_at_most,
    check_choice,
    check_count,
    check_flag,
    check_share,
)
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason

if TYPE_CHECKING:
    from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared

Predictor = Literal["rows", "extrapolate", "galerkin", "previous", "none"]
# Tolerance, and error of means and variances, where they will be differentiated, if nobody asks for less (n = 5000, 40
# points beside the data, noise 0.001, float64: gradients off by 1e-4; by 2e-3 with those of predictions).
_DIFFERENTIATED, _DIFFERENTIATED_ERROR = 1e-4, 1e-4
_PASSES_OF_PREDICTIONS = 5  # for every one of a training step: they are solved for once
_SEEDS = 1000  # between the seeds of one set of probes and the next


@dataclass(frozen=True)
class Certified:
    """Solve and take log determinants of K + D in a few passes over K, each answer with its certificate; what does not
    certify is answered by :class:`~gp_rangeformer.solvers.exact.Exact`.

    :param tolerance: of a training step: the relative residual |b - A x| / |b| of every column, recomputed from the
        answer, or from one at most four updates before it, with their rounding counted. The quadratic term is off by at
        most a tenth of it in nats per point (typically 1e-5). Ten times smaller costs about twice the iterations.
    :param prediction_tolerance: the same for solves outside the likelihood, which are made once per fitted model.
    :param prediction_error: largest certified error of a predictive mean, in standard deviations of the noise, and of a
        predictive variance, relative to the noise.
    :param variances: how predictive variances are found where nobody asks for covariances or gradients. "certified": by
        a factorisation, or by solves where none fits. "estimated": given landmarks and a point's nearest neighbours,
        which bounds them from above, and less what probes say that the other points add, to a standard error of
        ``prediction_error`` (of the variance of an observation, root mean square over the test points). "auto":
        certified where a factorisation and its solves take about a second, and for up to 32 points; else estimated.
    :param rank: landmarks of the preconditioner, at most. O(n rank^2) per call, n x rank memory; fewer iterations.
    :param neighbours: points that every other point is conditioned on besides the landmarks, at most (255 of them; 0
        for none). They take over where the noise is so small that no rank is enough, for kernels that are evaluated
        here (``fused_kernels``). O(n neighbours^2 (rank + neighbours)) per call, 3 n neighbours numbers.
    :param neighbours_above: of what landmarks leave, the mean of diag(D^-1 (K - Q)), from which on they are tried. With
        neighbours the probes of the gradient and of log|A| are whitened, which makes both better known, at a tenth too:
        what a fit asks (:mod:`gp_rangeformer.fit`).
    :param adaptive_rank: training starts with 64 landmarks and no neighbours, and takes twice as many of either where
        the iterations say that it pays; False: all landmarks, and all neighbours above ``neighbours_above``. On a GPU,
        where it has not been measured what neighbours cost, they are for that alone.
    :param num_probes: Rademacher probes of the gradient, solved together with y: its relative error falls as
        1 / sqrt(num_probes), and each is one more column in every pass.
    :param gradient_tolerance: largest standard error of the gradient, relative to it (norms over all log
        hyperparameters), as the probes' own spread says at a model's first step, at every 50th and where it grows.
        Above it, and above 0.01 nats per point, further probes are solved, up to four times ``num_probes``; up to
        n = 5000 a factorisation answers where even those would not do. Infinity: never.
    :param logdet: the value of log|A|. "learned": extrapolated by the trained head from the step's own solves, with an
        error estimate, checked by Lanczos at a model's first step and at every 25th; a value to monitor, the gradient
        is the probes'. "lanczos": stochastic Lanczos quadrature, 10 to 20 passes more. "quadrature": the two-node rule
        that the network corrects, for comparison. Or a :class:`~gp_rangeformer.logdet.estimate.TailEstimator`.
    :param logdet_tolerance: uncertainty in nats per point, half the width of the stated 90 % interval, above which
        Lanczos takes over.
    :param num_logdet_probes: how many of the probes Lanczos takes.
    :param history: solutions kept between calls: n x (1 + num_probes) numbers each, for the predictor "rows" twice.
    :param predictor: the next solution is proposed from the kept ones: "rows" (the mixture of solutions and corrections
        that fits best on 16 sampled rows of K), "extrapolate" (2 X[t-1] - X[t-2]), "galerkin" (the best combination of
        the last two, one wider pass), "previous", "none".
    :param landmarks: how they are drawn: "rp_cholesky" (randomly pivoted Cholesky) or "uniform".
    :param landmark_refresh: they are drawn again once a step takes more than this many times the iterations of the
        first one after the last draw (at least 4). 1: at every increase; infinity: never.
    :param max_passes: passes over K per solve before the exact path takes over; five times as many for predictions.
    :param seed: of probes and landmarks. The same sequence of calls with the same seed gives the same bits, on one
        machine with one number of threads and no other work.
    :raises ValueError: at construction, naming the argument and what it may be.
    """

    tolerance: float = 0.01
    prediction_tolerance: float = 0.001
    prediction_error: float = 0.01
    variances: Literal["auto", "certified", "estimated"] = "auto"
    rank: int = 400
    neighbours: int = 64
    neighbours_above: float = SATURATED
    adaptive_rank: bool = True
    num_probes: int = 32
    gradient_tolerance: float = 0.1
    logdet: Literal["learned", "lanczos", "quadrature"] | TailEstimator = "learned"
    logdet_tolerance: float = 0.01
    num_logdet_probes: int = 16
    history: int = 3
    predictor: Predictor = "rows"
    landmarks: Literal["rp_cholesky", "uniform"] = "rp_cholesky"
    landmark_refresh: float = 2.0
    max_passes: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tolerance", "prediction_tolerance", "prediction_error", "logdet_tolerance"):
            check_share(self, name)
        smallest = {
            "rank": 1,
            "num_probes": 2,
            "num_logdet_probes": 2,
            "history": 0,
            "max_passes": 1,
            "seed": 0,
            "neighbours": 0,
        }
        for name, least in smallest.items():
            check_count(self, name, least)
        check_flag(self, "adaptive_rank")
        check_at_most(self, "neighbours", MOST_NEIGHBOURS)
        check_above(self, "gradient_tolerance", 0.0, itself=False)
        check_above(self, "neighbours_above", 0.0, itself=True)
        check_above(self, "landmark_refresh", 1.0, itself=True)
        check_choice(self, "predictor", get_args(Predictor))
        check_choice(self, "variances", ("auto", "certified", "estimated"))
        check_choice(self, "landmarks", ("rp_cholesky", "uniform"))
        if isinstance(self.logdet, type) or not callable(self.logdet):
            check_choice(self, "logdet", ("learned", "lanczos", "quadrature"))

    @functools.cached_property
    def tail(self) -> TailEstimator | None:
        """What estimates log|A| from the probe solutions of a step; None leaves it to Lanczos."""
        if callable(self.logdet):
            return self.logdet
        methods = {"learned": functools.partial(learned.tail, seed=self.seed), "quadrature": learned.quadrature}
        return methods.get(self.logdet)

    @functools.cached_property
    def for_predictions(self) -> Certified:
        """With the tolerance, and all the landmarks and passes, that a solve made once per model may take."""
        passes = _PASSES_OF_PREDICTIONS * self.max_passes
        return replace(self, tolerance=self.prediction_tolerance, adaptive_rank=False, max_passes=passes)

    @functools.cached_property
    def for_derivatives(self) -> Certified:
        """The same where the solution's gradient is asked for: that is off by what a solution is, of whose value only
        the square shows."""
        solver = self.for_predictions
        tolerance, error = min(solver.tolerance, _DIFFERENTIATED), min(solver.prediction_error, _DIFFERENTIATED_ERROR)
        return replace(solver, tolerance=tolerance, prediction_error=error)

    @property
    def thin_columns(self) -> int:
        """n-vectors beside K in a training step: the sketch, whitened and orthogonalised in float64, neighbours, and
        blocks of solutions, residuals and directions, remembered ones included."""
        return 9 * self.rank + 10 * self.neighbours + (2 * self.history + 4) * (1 + self.num_probes)

    def prepare(self, system: LinearSystem, memory: Memory | None = None) -> CertifiedPrepared:
        """Build the preconditioner. Never raises for bad numbers: what fails here is answered by the exact path."""
        # Made here: a prepared system knows its solver.
        from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared

        memory = memory if memory is not None else Memory()
        generator = torch.Generator().manual_seed(self.seed)
        unseen = system.device.type != "cpu" and operations.answers_on(system.device)  # nothing is looked at yet
        if not unseen and not system.diagonal_facts.smallest_noise > 0:
            return CertifiedPrepared(self, system, memory, None, Reason.ZERO_NOISE)
        if memory.pause > 0:
            return CertifiedPrepared(self, system, memory, None, Reason.PAUSED)
        try:
            landmarks = self._landmarks(system, memory, generator)
            preconditioner = (UnseenNystrom if unseen else nystrom_preconditioner)(system, landmarks)
            vecchia = self._vecchia(system, landmarks, preconditioner, memory)
        except (PreconditionerError, ValueError):
            memory.forget_landmarks()
            reason = Reason.NOT_PSD if system.diagonal_facts.smallest_noise > 0 else Reason.ZERO_NOISE
            return CertifiedPrepared(self, system, memory, None, reason)
        return CertifiedPrepared(self, system, memory, preconditioner, None, landmarks, vecchia)

    def _vecchia(
        self, system: LinearSystem, landmarks: Landmarks, preconditioner: NystromPreconditioner, memory: Memory
    ) -> VecchiaPreconditioner | None:
        """None where they would not pay."""
        if not self.adaptive_rank:
            possible = system.points is not None and self.neighbours > 0
            enough = possible and preconditioner.facts.mean_gap > self.neighbours_above
            return self.with_neighbours(system, landmarks, memory, self.neighbours) if enough else None
        if memory.neighbour_count is None:
            enough = neighbours_known_to_pay(system) and preconditioner.facts.mean_gap > HOPELESS
            memory.neighbour_count = FEWEST_NEIGHBOURS if enough else 0
        return self.with_neighbours(system, landmarks, memory, memory.neighbour_count)

    def with_neighbours(
        self, system: LinearSystem, landmarks: Landmarks, memory: Memory, count: int
    ) -> VecchiaPreconditioner | None:
        """Built on ``landmarks`` with at most ``count`` neighbours of every point; None without any, and where the
        kernel's entries cannot be made one by one."""
        count = min(count, self.neighbours, system.size - len(landmarks.index) - 1)
        if count < 1 or system.points is None:
            return None
        known = memory.neighbours
        if known is None or not known.belong_to(system.size, landmarks) or known.count != count:
            generator = torch.Generator().manual_seed(self.seed + 5)
            known = find_neighbours(system.points, landmarks, count, generator)
            if memory.landmarks is landmarks:
                memory.neighbours = known
        try:
            return vecchia_preconditioner(system, system.points, known)
        except PreconditionerError:  # the other one's shift may have absorbed what this one meets
            return None

    @property
    def largest_effort(self) -> Effort:
        return Effort(self.rank, self.neighbours)

    def _landmarks(self, system: LinearSystem, memory: Memory, generator: torch.Generator) -> Landmarks:
        """Those of the memory, if there are enough and not too many, or new ones."""
        wanted = self.rank
        if self.adaptive_rank:
            wanted = memory.rank = min(max(memory.rank or 0, STARTING_RANK), self.rank)
        known, n = memory.landmarks, system.size
        if known is not None and known.belong_to(n) and known.suffice(min(wanted, n)) and len(known.index) <= self.rank:
            return known
        draw = rp_cholesky_landmarks if self.landmarks == "rp_cholesky" else uniform_landmarks
        drawn = draw(system, wanted, generator)
        if self.adaptive_rank or memory.rank is None:
            memory.forget_landmarks()
            memory.landmarks = drawn
        return drawn

    def probe_vectors(self, system: LinearSystem, count: int | None = None) -> Float[Tensor, "n p"]:
        """Rademacher probes, a function of seed, n and num_probes alone (the same on every device).

        :param count: how many; None for num_probes, which are the first of any larger number.
        """
        count = self.num_probes if count is None else count
        drawn = []
        for number, start in enumerate(range(0, count, self.num_probes)):
            generator = torch.Generator().manual_seed(self.seed + 1 + _SEEDS * number)
            signs = torch.randint(
                0, 2, (system.size, self.num_probes), generator=generator, dtype=torch.int8, device="cpu"
            )
            drawn.append(signs[:, : count - start])
        signs = drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=1)
        return signs.to(device=system.device, dtype=system.dtype).mul_(2).sub_(1)


def neighbours_known_to_pay(system: LinearSystem) -> bool:
    """Whether it has been measured what they cost: with entries made by compiled code or tensor operations on a CPU."""
    return system.points is not None and system.device.type == "cpu"
