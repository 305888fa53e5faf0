"""The variances and covariances of f at the test points of one prediction, with their reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.allocation.free_cores import free_cores
from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.kernels.evaluate import evaluate_arguments
from gp_rangeformer.plugin.fitted import keep_at_most
from gp_rangeformer.plugin.fitted_model import FittedModel
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.factorisation import exact_path_fits
from gp_rangeformer.solvers.variances import Variances, certified_variances, evenly_spread, exact_variances
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.torch_modes import no_autocast

# Multiplications of a factorisation and the solves with it that certified variances may take: half a second to a
# second on two cores; and test points of which single solves are certified at any n.
_MULTIPLICATIONS, _FEW = 10**11, 32
# Estimated variances are held against certified ones at so many points, once per model. Beyond so many standard errors
# they are not what they are said to be.
_AUDITED, _DEVIATIONS = 8, 6.0


class StaleModelError(RuntimeError):
    """A covariance was read after the model had changed that it was predicted with."""


class Posterior:
    """Of one prediction.

    :param by_host: makes the dense covariance as GPyTorch does, from the model as it is then.
    :param unchanged: whether that is the model that has predicted.
    """

    def __init__(
        self,
        fitted: FittedModel,
        cross: CrossKernel,
        by_host: Callable[[], Tensor],
        unchanged: Callable[[], bool],
    ) -> None:
        self._fitted, self._cross, self._by_host, self._unchanged = fitted, cross, by_host, unchanged

    @free_cores()
    def variances(self) -> Tensor:
        """Of f, t, at least 0. See ``variances`` of :class:`gp_rangeformer.Certified`."""
        with torch.no_grad(), no_autocast():
            found = torch.where(self._cross.known, self._variances().value, math.nan)
        return found.to(self._cross.dtype)

    @free_cores()
    def covariance(self) -> Tensor:
        """Of f, t x t: by the factor where certified variances would take one, else by GPyTorch's own way.

        :raises StaleModelError: if that is another model now.
        """
        with torch.no_grad(), no_autocast():
            if self._by_factor():
                system = self._fitted.linear_system() if self._fitted.factor is None else None
                if system is None or exact_path_fits(system, self._cross.t):
                    return self._covariance_by_factor(system)
            if not self._unchanged():
                raise StaleModelError(
                    "the model's parameters or data have changed since this prediction was made: read its covariance "
                    "or sample from it before they do, or predict again"
                )
            return self._by_host()

    def _covariance_by_factor(self, system: LinearSystem | None) -> Tensor:
        cross, factor = self._cross, self._factor(system)
        half = torch.linalg.solve_triangular(factor, cross.dense().mT.to(factor.dtype), upper=False)
        arguments = tuple(argument.detach() for argument in cross.of_others)
        prior = evaluate_arguments(cross.expression, arguments, cross.t, cross.dtype).to(factor.dtype)
        covariance = prior.addmm_(half.mT, half, alpha=-1)
        covariance.diagonal().clamp_min_(0)
        return covariance.to(cross.dtype)

    def _factor(self, system: LinearSystem | None) -> Tensor:
        known = self._fitted.factor
        if known is not None:
            return known
        factor = self._fitted.factorised(self._fitted.linear_system() if system is None else system)
        keep_at_most(settings.memory_limit.value())
        return factor

    def _by_factor(self) -> bool:
        """Whether a factorisation answers: where it is there or takes little, or is what was asked for."""
        fitted, n, t = self._fitted, self._cross.n, self._cross.t
        solver = fitted.solver
        if not isinstance(solver, Certified) or n < settings.min_size.value_on(self._cross.device):
            return True
        if solver.variances == "estimated":
            return False
        work = n * n * (t + (0 if fitted.factor is not None else n / 3))
        return work <= _MULTIPLICATIONS or (solver.variances == "certified" and t > _FEW)

    def _variances(self) -> Variances:
        fitted, cross, started = self._fitted, self._cross, time.perf_counter()
        by_factor = self._by_factor()
        estimator = None if by_factor else fitted.estimator
        few = isinstance(fitted.solver, Certified) and fitted.solver.variances != "estimated" and cross.t <= _FEW
        needs_system = fitted.factor is None if by_factor else few or estimator is None or fitted.audit is None
        system = fitted.linear_system() if needs_system else None
        if by_factor and (system is None or exact_path_fits(system, 1)):
            return self._report(exact_variances(cross, self._factor(system)), "exact", system, started)
        if few or by_factor:
            found = self._certified(system)
            if found is not None:
                return self._report(found, "rangeformer", system, started)
        if not by_factor:
            if estimator is None and system is not None:
                estimator = fitted.estimated(system)
                keep_at_most(settings.memory_limit.value())
            if estimator is not None:
                assert isinstance(fitted.solver, Certified)
                found = estimator.of(cross, fitted.solver.prediction_error)
                stands = self._stands(found, system)
                system = fitted.linear_system() if system is None and not stands else system
                if stands or (system is not None and not exact_path_fits(system, 1)):
                    return self._report(found, "rangeformer", system, started)
        system = fitted.linear_system() if system is None else system
        # Refuses by itself what does not fit.
        return self._report(exact_variances(cross, self._factor(system)), "exact", system, started, Reason.ESTIMATES)

    def _certified(self, system: LinearSystem | None) -> Variances | None:
        known = self._fitted.preconditioners
        if known is None or system is None:
            return None
        found = certified_variances(known.of(system), self._cross, self._fitted.rounded)
        allowed = known.solver.prediction_error
        return None if found is None or found.error is None or not found.error <= allowed else found

    def _stands(self, found: Variances, system: LinearSystem | None) -> bool:
        """Whether the estimates are what they are said to be, where single solves certify the truth: at a few points,
        once per model."""
        fitted, cross = self._fitted, self._cross
        known = fitted.preconditioners
        if fitted.audit is not None or known is None or system is None:
            return not fitted.doubted
        # Of points with NaN nothing is known.
        answered = cross.known.nonzero().squeeze(-1)
        chosen = answered[evenly_spread(len(answered), _AUDITED, cross.device)]
        if not len(chosen):
            return True
        few = cross.of_some(chosen)
        if fitted.factor is not None:
            truth = replace(exact_variances(few, fitted.factor), error=0.0)
        else:
            truth = certified_variances(known.of(system), few, fitted.rounded)
        if truth is None or truth.error is None or not truth.error < 1:
            fitted.audit = f"not held against certified variances, which float32 or {known.solver.max_passes} passes "
            fitted.audit += "do not reach"
            return True
        whole = truth.value + fitted.smallest_noise
        off = (found.value[chosen] - truth.value).abs() / whole
        room = _DEVIATIONS * found.standard_error[chosen] / whole + truth.error
        fitted.audit = f"at {len(chosen)} points off by at most {float(off.max()):.1%} from variances certified to "
        fitted.audit += f"{truth.error:.1%}"
        fitted.doubted = not bool((off <= room).all())
        if fitted.doubted:
            fitted.audit += ", more than their standard errors allow"
        return not fitted.doubted

    def _report(
        self,
        found: Variances,
        solver: str,
        system: LinearSystem | None,
        started: float,
        reason: Reason = Reason.CONVERGED,
    ) -> Variances:
        fitted, cross = self._fitted, self._cross
        noise, notes = fitted.smallest_noise, []
        error = found.error or 0.0
        if found.neighbours is not None:
            error = found.relative_error(noise) if noise > 0 else math.inf
            notes.append(
                f"estimated given {found.neighbours} neighbours, which certainly says at most "
                f"{found.excess(noise):.1%} more on average"
            )
            if fitted.audit is not None:
                notes.append(fitted.audit)
        if solver == "exact" and fitted.factor is None:
            notes.append("the factorisation was not kept for a next call: settings.memory_limit is too small for it")
        if solver == "exact" and reason is Reason.CONVERGED:
            small = cross.n < settings.min_size.value_on(cross.device)
            asked = not isinstance(fitted.solver, Certified)
            reason = Reason.EXACT_ASKED if asked else Reason.EXACT_SMALL if small else Reason.EXACT_MANY_COLUMNS
        fitted.report(
            "predictive_variance",
            system,
            started,
            solver=solver,
            reason=reason,
            columns=cross.t,
            variance_error=error,
            notes=tuple(notes),
        )
        return found
