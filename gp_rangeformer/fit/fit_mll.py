"""Train a model until it has converged, and say how well that is known."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpytorch.mlls import ExactMarginalLogLikelihood, LeaveOneOutPseudoLikelihood, MarginalLogLikelihood
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.fit.arguments import checked
from gp_rangeformer.fit.ascent import NUMERICAL, Ascent, ascend
from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.last_look import last_look
from gp_rangeformer.fit.objective import Anchor, Objective, is_likelihood
from gp_rangeformer.fit.result import LEFT_OUT, LIKELIHOOD, FitResult, Record
from gp_rangeformer.fit.solver import solver_of_fit
from gp_rangeformer.fit.subsets import can_be_thinned, level_sizes, thinned
from gp_rangeformer.fit.wall import AT_THE_WALL, Wall

# Nats per point that may be left to gain, and evaluations on all points.
TOLERANCE = 1e-4
# Of a subset: its own optimum is not the one that is wanted, and what it says nothing of must not drift to where all
# points do not find it again (pol, n = 1000, from the optimum of 200 points: 0.008 to 0.01 below the best, for good).
_LEVEL_TOLERANCE, _LEVEL_EVALUATIONS, _LEVEL_DEVIATION = 1e-3, 20, 1.0


class FitError(RuntimeError):
    """An evaluation failed. The model has the best parameters that were found before."""


def fit_mll(
    mll: MarginalLogLikelihood,
    *,
    tolerance: float = TOLERANCE,
    max_evaluations: int | None = None,
    timeout: float | None = None,
    callback: Callable[[Record], None] | None = None,
    levels: bool | int = True,
    seed: int = 0,
) -> FitResult:
    """Maximise ``mll`` over the model's free parameters, in place; constraints hold, priors count.

    Nested subsets of the training points first (each a fifth of the next), then all of them: steps by average
    information in a trust region, judged by values and gradients with the same probes. Inside
    ``settings.rangeformer()`` the chosen solver answers, from 2,500 points on (2,000 by secants) unless
    ``settings.min_size`` says otherwise (a :class:`~gp_rangeformer.Certified` one with neighbours for all points, so
    that probes are whitened); the exact one below, and outside of the flag. Kernels that have no fused form, and inputs
    that depend on parameters, get their curvature from differences; more than 64 parameters, batches, several columns
    of targets and an ``mll`` with a ``forward`` of its own (:class:`gpytorch.mlls.LeaveOneOutPseudoLikelihood`) from
    secants. The same call gives the same bits, on one machine without other work.

    :param tolerance: nats per data point that may be left to gain.
    :param max_evaluations: of the likelihood on all points. Some ten are usual; None for some 40, and 400 by secants.
    :param timeout: seconds after which no further step is taken: one evaluation, of where the fit is then, may follow.
    :param callback: sees every evaluation, on subsets too, while the model has its parameters. What it raises ends the
        fit.
    :param levels: whether to begin on subsets; False starts on all points, a number on subsets of at least so many.
    :param seed: of the subsets.
    :raises ValueError: an argument that cannot be, a model without training data or without free parameters.
    :raises FitError: an evaluation failed (of the first one: nothing was changed).
    :raises KeyboardInterrupt: with the best parameters so far in the model.
    """
    exact = checked(mll, tolerance, max_evaluations, timeout, levels)
    return _Fit(exact, float(tolerance), max_evaluations, timeout, callback, levels, seed).run()


@contextlib.contextmanager
def _modes_kept(mll: torch.nn.Module) -> Iterator[None]:
    """Training or evaluation, of every part."""
    modes = [(module, module.training) for module in mll.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode  # what predictions had cached is gone: no method has to be called


class _Fit:
    def __init__(
        self,
        mll: ExactMarginalLogLikelihood,
        tolerance: float,
        max_evaluations: int | None,
        timeout: float | None,
        callback: Callable[[Record], None] | None,
        levels: bool | int,
        seed: int,
    ) -> None:
        self._mll: Any = mll  # whose parts GPyTorch types as modules
        self._tolerance, self._most = tolerance, max_evaluations
        self._timeout = math.inf if timeout is None else timeout
        self._callback, self._levels, self._seed = callback, levels, seed
        self._history: list[Record] = []
        self._notes: list[str] = []
        self._started = time.perf_counter()
        self._best: Evaluated | None = None  # on all points
        self._floor = -math.inf  # what is not above it is not accepted, wherever it leads
        self._raised: Exception | None = None  # by the callback

    def run(self) -> FitResult:
        with torch.inference_mode(False), torch.enable_grad(), solver_of_fit(self._mll), _modes_kept(self._mll):
            targets = self._mll.model.train_targets
            self._wall = Wall.of(targets.shape[-1], targets.dtype)
            self._objective = objective = Objective(self._mll, wall=self._wall)
            before = objective.parameters.raw_state()
            try:
                ascent = self._from_start(objective)
                result = self._result(ascent)
            except BaseException as error:
                if self._best is None:
                    objective.parameters.restore(before)
                else:
                    objective.parameters.write(self._best.phi)
                told = self._told(error, objective)
                if told is error:
                    raise
                raise told from error
            objective.parameters.write(ascent.best.phi)
        return result

    def _from_start(self, objective: Objective) -> Ascent:
        """From the parameters as they are, or from where subsets lead, whichever is better on all points."""
        best = objective(objective.parameters.read())
        start = best.phi  # with a mean that has followed
        if not (math.isfinite(best.value) and bool(best.gradient.isfinite().all())):
            raise FitError(
                f"{self._criterion} is {best.value} at the parameters as they are, or its gradient is not finite"
            )
        self._note_evaluation(objective, best, True)
        led = self._through_levels(start) if self._levels and not self._expired() else start
        moved = len(self._history) > 1  # by subsets
        if moved and not (led is start and self._expired()):
            best.seen = None  # which holds K
            found = objective(led)
            better = led is start or found.value > best.value
            self._note_evaluation(objective, found, better)
            if not better:
                found.seen = None
                self._notes.append("what subsets led to was worse than the start")
                found = objective(start)
                self._note_evaluation(objective, found, True)
            best = found
        return self._off_bounds(self._ascend(objective, best, self._tolerance, self._left), start)

    def _off_bounds(self, ascent: Ascent, start: Float64[Tensor, " p"]) -> Ascent:
        """Once more, with numbers where they were at first that ended on a bound although the likelihood rises off it:
        what they scale has all but vanished there, and the rise is too small for a step (a part of a sum)."""
        objective, best = self._objective, ascent.best
        held = objective.parameters.held_by_bounds(best.phi, best.gradient)
        back = torch.where(held, start, best.phi)
        enough = self._left is None or self._left > 1
        if not held.any() or torch.equal(back, best.phi) or not enough or self._expired():
            return ascent
        self._floor, best.seen = best.value, None  # which holds K
        try:
            found = objective(back)
            self._note_evaluation(objective, found, True)
            again = self._ascend(objective, found, self._tolerance, self._left)
        except NUMERICAL as error:
            if error is self._raised:
                raise
            again = ascent
        return again if again.best.value > best.value + self._tolerance else ascent

    @property
    def _left(self) -> int | None:
        """Evaluations."""
        return None if self._most is None else self._most - self._objective.evaluations

    def _expired(self) -> bool:
        return time.perf_counter() - self._started > self._timeout

    def _told(self, error: BaseException, objective: Objective) -> BaseException:
        """The error with what became of the model."""
        state = "the parameters are what they were"
        if self._best is not None:
            state = f"the model has the best parameters so far, of {self._criterion} = {self._best.value:.4f}"
        where = f"evaluation {objective.evaluations} on {objective.points} points"
        if isinstance(error, KeyboardInterrupt):
            return KeyboardInterrupt(f"interrupted, {where}: {state}")
        first = self._best is None and isinstance(error, ValueError)
        own = isinstance(error, FitError) or first or error is self._raised
        if isinstance(error, Exception) and not own:
            return FitError(f"{where}: {type(error).__name__}: {error} ({state})")
        return error

    def _through_levels(self, start: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        """Where nested subsets lead; ``start`` where there are none, or one fails."""
        n, phi = self._mll.model.train_targets.shape[-1], start
        sizes = [size for size in level_sizes(n) if size >= self._levels] if can_be_thinned(self._mll) else []
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self._seed), device="cpu")
        anchor = Anchor(phi, _LEVEL_DEVIATION)
        for size in sizes:
            if self._expired():
                break
            try:
                small = thinned(self._mll, order[:size])
            except Exception as error:  # whatever a model's own attributes raise when they are copied
                self._notes.append(f"subsets left out: the model cannot be copied ({type(error).__name__})")
                return start
            try:
                level = Objective(small, anchor, self._wall)
                first = level(phi)
                self._note_evaluation(level, first, True)
                phi = self._ascend(level, first, _LEVEL_TOLERANCE, _LEVEL_EVALUATIONS).best.phi
            except (*NUMERICAL, RuntimeError) as error:
                if error is self._raised:
                    raise
                self._notes.append(f"subsets left out: {type(error).__name__}")
                return start
        return phi

    def _ascend(self, objective: Objective, start: Evaluated, tolerance: float, most: int | None) -> Ascent:
        return ascend(
            objective,
            start,
            tolerance=tolerance,
            max_evaluations=most,
            watch=lambda evaluated, accepted: self._note_evaluation(objective, evaluated, accepted),
            expired=self._expired,
        )

    def _note_evaluation(self, objective: Objective, evaluated: Evaluated, accepted: bool) -> None:
        accepted = accepted and evaluated.value > self._floor
        if accepted and objective.mll is self._mll:
            self._best = evaluated
        seconds = time.perf_counter() - self._started
        record = Record(objective.points, seconds, evaluated.value, evaluated.error, accepted)
        self._history.append(record)
        if self._callback is not None:
            if objective is not self._objective:
                self._objective.parameters.write(evaluated.phi)
            try:
                self._callback(record)
            except Exception as error:
                self._raised = error
                raise

    @property
    def _criterion(self) -> str:
        """What is maximised, in words."""
        if isinstance(self._mll, LeaveOneOutPseudoLikelihood):
            return LEFT_OUT
        return LIKELIHOOD if is_likelihood(self._mll) else type(self._mll).__name__

    @property
    def _dtype_name(self) -> str:
        return str(self._mll.model.train_targets.dtype).removeprefix("torch.")

    def _result(self, ascent: Ascent) -> FitResult:
        best, model = last_look(self._objective, ascent.best), ascent.model
        report = best.report
        certain = None if report is None or report.mll_interval is None else report.mll_interval.scaled(1 / report.n)
        if certain is not None:
            # What a mean has gained since is known to the tolerance of a rough solve.
            certain = replace(certain, upper=certain.upper + 2 * best.gain).shifted(self._objective.beside(best))
        decrement = model.newton_decrement()
        failures = sum(record.value == -math.inf for record in self._history)
        if failures:
            self._notes.append(f"{failures} evaluations failed, too far out or not certified: steps were shortened")
        if bound := self._objective.parameters.on_bounds(best.phi):
            self._notes.append(f"on a bound of its constraint: {', '.join(bound)} (the optimum may lie beyond)")
        if ends := self._objective.parameters.at_ends(best.phi):
            self._notes.append(f"as far as a fit goes: {', '.join(ends)} (change the units of targets or inputs)")
        at_the_wall = model.wall is not None and best.room < AT_THE_WALL
        if at_the_wall and replace(model, wall=None).newton_decrement() > decrement + self._tolerance:
            remedy = "" if self._dtype_name == "float64" else ", which needs float64"
            self._notes.append(f"{self._dtype_name} ends here: rounding of K hides smaller noise{remedy}")
        return FitResult(
            value=best.value,
            error=best.error,
            rounding=0.0 if best.error else best.resolution,
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
            criterion=self._criterion,
        )
