"""Train a model until it has converged, and say how well that is known."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.fit.ascent import Ascent, ascend
from gp_rangeformer.fit.objective import Anchor, Evaluated, Objective
from gp_rangeformer.fit.result import FitResult, Record
from gp_rangeformer.fit.subsets import can_be_thinned, level_sizes, thinned
from gp_rangeformer.fit.wall import Wall
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact

# Nats per point that may be left to gain, and evaluations on all points.
TOLERANCE, MAX_EVALUATIONS = 1e-4, 40
# Of a subset: its own optimum is not the one that is wanted, and what it says nothing of must not drift to where all
# points do not find it again (pol, n = 1000, from the optimum of 200 points: 0.008 to 0.01 below the best, for good).
_LEVEL_TOLERANCE, _LEVEL_EVALUATIONS, _LEVEL_DEVIATION = 1e-3, 20, 1.0
# Landmarks of a fit: with neighbours for all, more do not save what they cost (n = 2000, five sets: 100 and 200).
_RANK = 100


class FitError(RuntimeError):
    """An evaluation failed. The model has the best parameters that were found before."""


def fit_mll(
    mll: ExactMarginalLogLikelihood,
    *,
    tolerance: float = TOLERANCE,
    max_evaluations: int = MAX_EVALUATIONS,
    callback: Callable[[Record], None] | None = None,
    levels: bool = True,
    seed: int = 0,
) -> FitResult:
    """Maximise ``mll`` over the model's free parameters, in place; constraints hold, priors count.

    Nested subsets of the training points first (each a fifth of the next), then all of them: steps by average
    information in a trust region, judged by values and gradients with the same probes. Inside
    ``settings.rangeformer()`` the chosen solver answers (a :class:`~gp_rangeformer.Certified` one with neighbours for
    all points, so that probes are whitened), outside of it the exact one. Kernels that have no fused form, and inputs
    that depend on parameters, get their curvature from differences; more than 64 parameters, batches and several
    columns of targets from secants. The same call gives the same bits, on one machine.

    :param tolerance: nats per data point that may be left to gain.
    :param max_evaluations: of the likelihood on all points. Some ten are usual.
    :param callback: sees every evaluation, on subsets too. What it raises ends the fit.
    :param levels: whether to begin on subsets; False starts on all points.
    :param seed: of the subsets.
    :raises ValueError: an argument that cannot be, a model without training data or without free parameters.
    :raises FitError: an evaluation failed (of the first one: nothing was changed).
    :raises KeyboardInterrupt: with the best parameters so far in the model.
    """
    if not isinstance(mll, ExactMarginalLogLikelihood):
        raise ValueError(
            f"fit_mll needs an ExactMarginalLogLikelihood, got {type(mll).__name__}: the parts of a sum are fitted one by one"
        )
    if not (isinstance(tolerance, float | int) and 0 < tolerance < math.inf):
        raise ValueError(f"tolerance must be a positive number of nats per point, got {tolerance!r}")
    if isinstance(max_evaluations, bool) or not isinstance(max_evaluations, int) or max_evaluations < 1:
        raise ValueError(f"max_evaluations must be an integer of at least 1, got {max_evaluations!r}")
    return _Fit(mll, float(tolerance), max_evaluations, callback, levels, seed).run()


class _Fit:
    def __init__(
        self,
        mll: ExactMarginalLogLikelihood,
        tolerance: float,
        max_evaluations: int,
        callback: Callable[[Record], None] | None,
        levels: bool,
        seed: int,
    ) -> None:
        self._mll, self._tolerance, self._most = mll, tolerance, max_evaluations
        self._callback, self._levels, self._seed = callback, levels, seed
        self._history: list[Record] = []
        self._notes: list[str] = []
        self._started = time.perf_counter()

    def run(self) -> FitResult:
        with self._solver():
            objective = Objective(self._mll, wall=self._wall())
        parameters = objective.parameters
        before = parameters.raw_state()
        best: list[Evaluated] = []  # on all points, the last is the best

        def keep(evaluated: Evaluated, accepted: bool) -> None:
            if accepted:
                best.append(evaluated)

        try:
            with self._solver():
                start = self._through_levels(parameters.read())
                ascent = self._ascend(objective, start, self._tolerance, self._most, keep)
                result = self._result(objective, ascent)
        except BaseException as error:
            if best:
                parameters.write(best[-1].phi)
            else:
                parameters.restore(before)
            raise self._told(error, best, objective) from error
        parameters.write(ascent.best.phi)
        return result

    def _told(self, error: BaseException, best: list[Evaluated], objective: Objective) -> BaseException:
        """The error with what became of the model."""
        state = "the parameters are what they were"
        if best:
            state = f"the model has the best parameters so far, of log p(y)/n = {best[-1].value:.4f}"
        where = f"evaluation {objective.evaluations} on {objective.points} points"
        if not objective.evaluations:
            where = "on a subset of the points"
        if isinstance(error, KeyboardInterrupt):
            return KeyboardInterrupt(f"interrupted, {where}: {state}")
        if isinstance(error, Exception) and not isinstance(error, FitError | ValueError):
            return FitError(f"{where}: {type(error).__name__}: {error} ({state})")
        return error

    @contextlib.contextmanager
    def _solver(self) -> Iterator[None]:
        """Whitened probes throughout; and no check of gradients by their own size, which vanishes at an optimum."""
        chosen = settings.solver.value()
        if settings.rangeformer.off():
            with settings.rangeformer(), settings.solver(Exact()):
                yield
        elif isinstance(chosen, Certified):
            changed = replace(
                chosen,
                rank=min(chosen.rank, _RANK),
                neighbours_above=0.0,
                adaptive_rank=False,
                logdet="lanczos",
                gradient_tolerance=math.inf,
            )
            with settings.solver(changed):
                yield
        else:
            yield

    def _wall(self) -> Wall | None:
        """Of the dtype in which all points are to be certified; where the exact path answers, float64 helps itself."""
        targets = self._mll.model.train_targets
        n = targets.shape[-1]
        if not isinstance(settings.solver.value(), Certified) or n < settings.min_size.value_on(targets.device):
            return None
        return Wall.of(n, targets.dtype)

    def _through_levels(self, phi: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        if not self._levels or not can_be_thinned(self._mll):
            return phi
        n = len(self._mll.model.train_targets)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self._seed))
        anchor, wall = Anchor(phi, _LEVEL_DEVIATION), self._wall()
        for size in level_sizes(n):
            level = Objective(thinned(self._mll, order[:size]), anchor, wall)
            phi = self._ascend(level, phi, _LEVEL_TOLERANCE, _LEVEL_EVALUATIONS).best.phi
        return phi

    def _ascend(
        self,
        objective: Objective,
        phi: Tensor,
        tolerance: float,
        most: int,
        keep: Callable[[Evaluated, bool], None] = lambda evaluated, accepted: None,
    ) -> Ascent:
        def watch(evaluated: Evaluated, accepted: bool) -> None:
            keep(evaluated, accepted)
            seconds = time.perf_counter() - self._started
            record = Record(objective.points, seconds, evaluated.value, evaluated.error, accepted)
            self._history.append(record)
            if self._callback is not None:
                self._callback(record)

        return ascend(objective, phi, tolerance=tolerance, max_evaluations=most, watch=watch)

    def _result(self, objective: Objective, ascent: Ascent) -> FitResult:
        best, report, model = ascent.best, ascent.best.report, ascent.model
        certain = None if report is None or report.mll_interval is None else report.mll_interval.scaled(1 / report.n)
        decrement = model.newton_decrement()
        if model.wall is not None and replace(model, wall=None).newton_decrement() > decrement + self._tolerance:
            self._notes.append(f"{report.dtype if report else 'the dtype'} ends here: smaller noise beside this scale needs float64")
        return FitResult(
            value=best.value,
            error=best.error,
            certain=certain,
            decrement=decrement,
            noise=ascent.noise,
            converged=ascent.reason == "converged",
            reason=ascent.reason,
            method="secants" if ascent.secants else "average information",
            evaluations=dict(Counter(record.points for record in self._history)),
            seconds=time.perf_counter() - self._started,
            history=tuple(self._history),
            report=report,
            notes=tuple(self._notes),
        )
