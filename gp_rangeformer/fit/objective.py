"""What a fit maximises: a model's marginal likelihood at given parameters, with its gradient, curvature and errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from jaxtyping import Bool, Float64
from torch import Tensor

from gp_rangeformer.fit.columns import CovarianceColumns, analytic_columns, columns_by_differences, derivatives
from gp_rangeformer.fit.evaluated import Evaluated, Seen
from gp_rangeformer.fit.gradient_noise import group_gradients
from gp_rangeformer.fit.information import fit_mean, information
from gp_rangeformer.fit.parameters import FreeParameters
from gp_rangeformer.fit.rounding import rounding_of, stated_errors
from gp_rangeformer.fit.trust_region import QuadraticModel
from gp_rangeformer.fit.wall import Wall
from gp_rangeformer.plugin.observation import Observation, observe_likelihoods
from gp_rangeformer.plugin.owners import try_again
from gp_rangeformer.report import collect_reports
from gp_rangeformer.system.answers import LogDet
from gp_rangeformer.torch_modes import no_autocast

_STEP = {torch.float32: 1e-2, torch.float64: 1e-4}  # of a logarithm
_ROUNDED = 1e-5  # nats per point: above, that is looked at more closely
# Nats per point that a mean may gain by what a rough solve says, and evaluations more where it is more: of an offset in
# the targets, thousands of their deviations, it says a gain that may be a hundredth too large.
_LARGE_GAIN, _AGAIN = 0.1, 4
MOST_COLUMNS = 64  # parameters up to which curvature is worth a solve for each


@dataclass(frozen=True)
class Anchor:
    """A Gaussian prior on phi: what few points say nothing of stays where many may still find it. None on a mean that
    is fitted to the others: it is found anew, on whatever scale the targets have."""

    centre: Float64[Tensor, " p"]
    deviation: float

    def hold(self, found: Evaluated, points: int) -> None:
        """Count it in a likelihood per point."""
        away = (found.phi - self.centre) / self.deviation
        if found.seen is not None:
            away[found.seen.follows] = 0
        found.value -= 0.5 * float(away.square().sum()) / points
        found.gradient = found.gradient - away / (self.deviation * points)


def is_likelihood(mll: object) -> bool:
    """Whether this is log p(y) / n: what a ``forward`` of one's own may maximise is not known."""
    return type(mll).forward is ExactMarginalLogLikelihood.forward  # type: ignore[attr-defined]


class Objective:
    """log p(y) / n of ``mll``'s own training data, priors included, as a function of phi.

    :param anchor: a prior more.
    :param wall: that no step of a model crosses.
    :raises ValueError: without free parameters.
    """

    def __init__(self, mll: ExactMarginalLogLikelihood, anchor: Anchor | None = None, wall: Wall | None = None) -> None:
        self.mll: Any = mll  # whose parts GPyTorch types as modules
        self.model: Any = mll.model
        self._anchor, self._wall = anchor, wall
        self.parameters = FreeParameters(mll)
        self.points: int = self.model.train_targets.shape[-1]
        self.evaluations, self._batch = 0, torch.Size()

    @property
    def dtype(self) -> torch.dtype:
        return self.model.train_targets.dtype

    def __call__(self, phi: Float64[Tensor, " p"]) -> Evaluated:
        """One evaluation, and the gradient. A mean that is linear in its parameters, without priors, is fitted to the
        others: the result is for that phi, and so are the parameters. Where that gains much, it is evaluated again.

        :raises Exception: what the model, GPyTorch or a solver raises.
        """
        self.evaluations += 1
        found = self._evaluated(phi)
        for _ in range(_AGAIN):
            if not found.gain > _LARGE_GAIN:
                break
            found.seen = None  # which holds K
            found = self._evaluated(found.phi)
        if self._anchor is not None:
            self._anchor.hold(found, self.points)
        return found

    def _evaluated(self, phi: Float64[Tensor, " p"]) -> Evaluated:
        """Without the anchor."""
        try_again()
        self.parameters.write(phi)
        slopes, _ = self.parameters.slopes(phi)
        with torch.enable_grad(), collect_reports(own_thread=True) as reports, observe_likelihoods() as observations:
            value = self._value()
            gradient = self._flat_gradient(value) * slopes
        found = Evaluated(phi, float(value.detach()), 0.0, gradient, reports[-1] if len(reports) else None)
        if found.report is not None:
            found.error, found.rounding, found.shift = stated_errors(found.report, self.points)
        # Curvature and the mean's own optimum are those of log p(y).
        known = is_likelihood(self.mll)
        usable = known and len(observations) == 1 and observations[0].rhs.shape[1] == 1
        if usable and self.parameters.size <= MOST_COLUMNS:
            found.samples = self._samples(observations[0])
            if found.rounding > _ROUNDED and (closer := rounding_of(observations[0])) is not None:
                found.rounding, found.shift = min(closer.spread, found.rounding), closer.shift
            found.seen = self._seen(observations[0], phi, slopes)
            self._measure_room(found, slopes)
            self._settle(found)
        return found

    def seen_again(self, point: Evaluated) -> Evaluated:
        """``point`` with the value and the report of the mean that it has now, without a gradient.

        :raises Exception: as a call does.
        """
        self.parameters.write(point.phi)
        with torch.no_grad(), collect_reports(own_thread=True) as reports:
            value = float(self._value())
        if not reports or not math.isfinite(value):
            return point
        error, rounding, shift = stated_errors(reports[-1], self.points)
        if not (error or point.error):  # of the same factor
            rounding, shift = min(rounding, point.rounding), min(shift, point.shift)
        return replace(point, value=value, error=error, rounding=rounding, shift=shift, gain=0.0, report=reports[-1])

    def beside(self, point: Evaluated) -> float:
        """What a value holds beside log p(y): priors, and a model's own terms, per point."""
        if not is_likelihood(self.mll):
            return 0.0
        self.parameters.write(point.phi)
        with torch.no_grad():
            nothing = torch.zeros(self._batch, dtype=torch.float64, device=self.model.train_targets.device)
            return float(self.mll._add_other_terms(nothing, self.model.train_inputs).sum()) / self.points

    def quadratic_model(self, point: Evaluated, near: float = 0.0) -> QuadraticModel | None:
        """With the average information there, or None where a quasi-Newton method must do without. Releases K.

        :param near: where the model has less than this to gain, ``point`` gets its gradients by groups of probes.
        """
        seen, point.seen = point.seen, None
        if seen is None:
            return None
        slopes, bends = self.parameters.slopes(point.phi)
        with torch.no_grad(), no_autocast():
            columns = seen.covariance(seen.observation.solution[:, 0].detach())
            matrix = information(seen.observation, columns, seen.mean, seen.follows)
        self.parameters.write(point.phi)  # differences have moved them
        curvature = matrix / self.points + self._prior_curvature(slopes, bends)
        if self._anchor is not None:
            curvature.diagonal().add_(1 / (self.points * self._anchor.deviation**2))
        # Those that follow have nothing left to gain, and no part in a step.
        curvature[seen.follows] = curvature[:, seen.follows] = 0
        curvature.diagonal()[seen.follows] = 1
        gradient = torch.where(seen.follows, 0.0, point.gradient)
        model = QuadraticModel(gradient, curvature, point.wall, max(point.room, 0.0))
        if model.newton_decrement() < near:
            groups = group_gradients(seen.observation, self.parameters.tensors)
            point.group_gradients = None if groups is None else groups * slopes * ~seen.follows / self.points
        return model

    def _value(self) -> Tensor:
        model = self.model
        model.train()
        output = model(*model.train_inputs)
        self.points, self._batch = output.event_shape.numel(), output.batch_shape
        return self.mll(output, model.train_targets, *model.train_inputs).sum()

    def _flat_gradient(self, value: Tensor, create_graph: bool = False) -> Tensor:
        """With respect to the stored numbers."""
        found = torch.autograd.grad(
            value,
            self.parameters.tensors,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([part.reshape(-1).double().cpu() for part in found])

    def _seen(self, observation: Observation, phi: Tensor, slopes: Float64[Tensor, " p"]) -> Seen:
        tensors = self.parameters.tensors
        analytic, device = analytic_columns(observation, tensors), observation.rhs.device
        if analytic is None:
            columns = columns_by_differences(self._product, phi, _STEP[self.dtype])
        else:
            columns = _scaled(analytic, slopes.to(device))
        mean = -derivatives(observation.rhs.squeeze(-1), tensors) * slopes.to(device)
        return Seen(observation, columns, mean, torch.zeros(len(phi), dtype=torch.bool, device="cpu"))

    def _measure_room(self, found: Evaluated, slopes: Float64[Tensor, " p"]) -> None:
        assert found.seen is not None
        position = None if self._wall is None else self._wall.position(found.seen.observation)
        if position is not None and position.requires_grad and bool(position.isfinite()):
            found.room, found.wall = float(position.detach()), -self._flat_gradient(position) * slopes

    def _settle(self, found: Evaluated) -> None:
        """Fit the mean to the other parameters, where that is a linear problem: a long step leaves it behind."""
        seen = found.seen
        assert seen is not None
        candidates = self._mean_alone(seen)
        if not candidates.any():
            return
        with torch.no_grad(), no_autocast():
            fit = fit_mean(seen.observation, seen.mean[:, candidates.to(seen.mean.device)], seen.covariance)
        phi = found.phi.clone()
        phi[candidates] += fit.delta
        self.parameters.write(phi)
        found.phi, found.gain = phi, fit.gain / self.points
        found.value += found.gain
        found.gradient = found.gradient + fit.gradient / self.points
        found.gradient[candidates] = 0
        seen.observation = replace(seen.observation, solution=fit.solution.to(seen.observation.solution))
        seen.follows = candidates

    def _mean_alone(self, seen: Seen) -> Bool[Tensor, " p"]:
        """The parameters on which nothing but the mean depends, and that linearly, with no prior and no bound."""
        tensors = self.parameters.tensors
        others = [seen.observation.noise, *(seen.observation.fused.arguments if seen.observation.fused else ())]
        if seen.observation.fused is None:
            return torch.zeros_like(seen.follows)
        touched = self._touched([*others, *self._log_priors()])
        alone = seen.mean.any(0).cpu() & ~touched & self.parameters.unbounded
        if not alone.any():
            return alone
        # Linear: a second derivative that vanishes.
        with torch.enable_grad():
            probe = torch.linspace(1, 2, len(seen.observation.rhs), dtype=self.dtype, device=seen.mean.device)
            weighted = (seen.observation.rhs.squeeze(-1) * probe).sum()
            first = torch.autograd.grad(weighted, tensors, create_graph=True, allow_unused=True)
            bent = [part for part in first if part is not None and part.requires_grad]
        return alone & ~self._touched(bent)

    def _touched(self, outputs: list[Tensor]) -> Bool[Tensor, " p"]:
        """Whether some of ``outputs`` depend on a number."""
        tensors = self.parameters.tensors
        outputs = [output for output in outputs if output.requires_grad]
        ones = [torch.ones_like(output) for output in outputs]
        found = (
            torch.autograd.grad(outputs, tensors, ones, retain_graph=True, allow_unused=True)
            if outputs
            else [None] * len(tensors)
        )
        parts = [
            torch.full((tensor.numel(),), gradient is not None, device="cpu")
            for tensor, gradient in zip(tensors, found, strict=True)
        ]
        return torch.cat(parts)

    def _samples(self, observation: Observation) -> Float64[Tensor, " k"] | None:
        logdet = observation.evaluation.logdet
        if not isinstance(logdet, LogDet) or not logdet.samples:
            return None
        return -0.5 * torch.tensor(logdet.samples, dtype=torch.float64, device="cpu") / self.points

    def _product(self, phi: Float64[Tensor, " p"], vector: Tensor) -> Float64[Tensor, " n"]:
        """A(phi) v through the model itself. It leaves the parameters at ``phi``."""
        self.parameters.write(phi)
        with torch.no_grad():
            model = self.model
            output = self.mll.likelihood(model(*model.train_inputs), *model.train_inputs)
            column = vector.to(self.dtype).unsqueeze(-1)
            return (output.lazy_covariance_matrix @ column).squeeze(-1).double()

    def _log_priors(self) -> list[Tensor]:
        with torch.enable_grad():
            return [prior.log_prob(closure(module)).sum() for _, module, prior, closure, _ in self.model.named_priors()]

    def _prior_curvature(self, slopes: Float64[Tensor, " p"], bends: Float64[Tensor, " p"]) -> Float64[Tensor, "p p"]:
        """Of minus the log prior, per point."""
        size = self.parameters.size
        matrix = torch.zeros(size, size, dtype=torch.float64, device="cpu")
        logs = [log for log in self._log_priors() if log.requires_grad]  # not those that are flat, or of what is fixed
        if not logs:
            return matrix
        with torch.enable_grad():
            total = torch.stack([log.double() for log in logs]).sum() / self.points
            gradient = self._flat_gradient(total, create_graph=True)
            for index, number in enumerate(gradient):
                if number.requires_grad:
                    matrix[index] = -self._flat_gradient(number)
        return matrix * slopes * slopes.unsqueeze(1) - torch.diag(gradient.detach() * bends)


def _scaled(columns: CovarianceColumns, factors: Float64[Tensor, " p"]) -> CovarianceColumns:
    return lambda vector: columns(vector) * factors
