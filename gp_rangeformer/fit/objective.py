"""What a fit maximises: a model's marginal likelihood at given parameters, with its gradient, curvature and errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.fit.gradient_noise import group_gradients
from gp_rangeformer.fit.information import analytic_columns, columns_by_differences, information
from gp_rangeformer.fit.parameters import FreeParameters
from gp_rangeformer.fit.trust_region import QuadraticModel
from gp_rangeformer.plugin.observation import Observation, observe_likelihoods
from gp_rangeformer.report import SolveReport, collect_reports
from gp_rangeformer.system.answers import LogDet

_STEP = {torch.float32: 1e-2, torch.float64: 1e-4}  # of a logarithm
MOST_COLUMNS = 64  # parameters up to which curvature is worth a solve for each


@dataclass
class Evaluated:
    """The likelihood at phi, in nats per point. ``error``: half of what its report states for the value, 0 if exact.

    ``samples``: what each probe of the log determinant says of the value, where probes were asked; ``group_gradients``:
    what groups of the gradient's probes say, near an optimum. ``observation`` holds K: drop it before the next evaluation.
    """

    phi: Float64[Tensor, " p"]
    value: float
    error: float
    gradient: Float64[Tensor, " p"]
    seconds: float
    report: SolveReport | None
    observation: Observation | None
    samples: Float64[Tensor, " k"] | None = None
    group_gradients: Float64[Tensor, "g p"] | None = None


@dataclass(frozen=True)
class Anchor:
    """A Gaussian prior on phi: what few points say nothing of stays where many may still find it."""

    centre: Float64[Tensor, " p"]
    deviation: float

    def value(self, phi: Float64[Tensor, " p"]) -> float:
        return -0.5 * float(((phi - self.centre) / self.deviation).square().sum())

    def gradient(self, phi: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        return (self.centre - phi) / self.deviation**2


class Objective:
    """log p(y) / n of ``mll``'s own training data, priors included, as a function of phi.

    :raises ValueError: without training data or without free parameters.
    """

    def __init__(self, mll: ExactMarginalLogLikelihood, anchor: Anchor | None = None) -> None:
        self._anchor = anchor
        self.mll, self.model = mll, mll.model
        if self.model.train_inputs is None or self.model.train_targets is None:
            raise ValueError("the model has no training data: give it some (set_train_data) before it is fitted")
        self.parameters = FreeParameters(mll)
        self.points = self.model.train_targets.numel()
        self.evaluations = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.model.train_targets.dtype

    def __call__(self, phi: Float64[Tensor, " p"]) -> Evaluated:
        """One evaluation, and the gradient. The parameters are left at ``phi``.

        :raises Exception: what the model, GPyTorch or a solver raises.
        """
        started = time.perf_counter()
        self.evaluations += 1
        self.parameters.write(phi)
        with torch.enable_grad(), collect_reports() as reports, observe_likelihoods() as seen:
            value = self._value()
            found = torch.autograd.grad(
                value, self.parameters.tensors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        raw = torch.cat([part.reshape(-1).double().cpu() for part in found])
        report = reports[-1] if len(reports) else None
        likelihood, gradient = float(value.detach()), raw * self.parameters.slopes(phi)[0]
        if self._anchor is not None:
            likelihood += self._anchor.value(phi) / self.points
            gradient += self._anchor.gradient(phi) / self.points
        return Evaluated(
            phi=phi,
            value=likelihood,
            error=self._error(report),
            gradient=gradient,
            seconds=time.perf_counter() - started,
            report=report,
            observation=seen[0] if len(seen) == 1 and seen[0].rhs.shape[1] == 1 else None,
            samples=self._samples(seen),
        )

    def quadratic_model(self, point: Evaluated, near: float = 0.0) -> QuadraticModel | None:
        """With the average information there, or None where a quasi-Newton method must do without. Releases K.

        :param near: where the model has less than this to gain, ``point`` gets its gradients by groups of probes.
        """
        observation, point.observation = point.observation, None
        if observation is None or self.parameters.size > MOST_COLUMNS:
            return None
        slopes, bends = self.parameters.slopes(point.phi)
        columns = analytic_columns(observation, self.parameters.tensors)
        if columns is None:
            columns = columns_by_differences(self._product_with(observation), point.phi, _STEP[self.dtype])
            self.parameters.write(point.phi)
        else:
            columns = columns[0] * slopes.to(columns[0].device), columns[1] * slopes.to(columns[1].device)
        with torch.no_grad():
            matrix, linear = information(observation, *columns)
        curvature = matrix / self.points + self._prior_curvature(slopes, bends)
        if self._anchor is not None:
            curvature.diagonal().add_(1 / (self.points * self._anchor.deviation**2))
        model = QuadraticModel(point.gradient, curvature, linear)
        if model.newton_decrement() < near:
            groups = group_gradients(observation, self.parameters.tensors)
            point.group_gradients = None if groups is None else groups * slopes / self.points
        return model

    def _value(self) -> Tensor:
        model = self.model
        model.train()
        return self.mll(model(*model.train_inputs), model.train_targets, *model.train_inputs).sum()

    def _error(self, report: SolveReport | None) -> float:
        if report is None or report.mll_statistical is None:
            return 0.0
        return 0.5 * report.mll_statistical.width / self.points

    def _samples(self, seen: list[Observation]) -> Float64[Tensor, " k"] | None:
        logdet = seen[0].evaluation.logdet if len(seen) == 1 else None
        if not isinstance(logdet, LogDet) or not logdet.samples:
            return None
        return -0.5 * torch.tensor(logdet.samples, dtype=torch.float64) / self.points

    def _product_with(self, observation: Observation) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        a = observation.solution[:, 0].detach()

        def evaluate(phi: Tensor) -> tuple[Tensor, Tensor]:
            self.parameters.write(phi)
            with torch.no_grad():
                model = self.model
                output = self.mll.likelihood(model(*model.train_inputs), *model.train_inputs)
                product = output.lazy_covariance_matrix @ a.unsqueeze(-1)
                return product.squeeze(-1).double(), output.mean.reshape(-1).double()

        return evaluate

    def _prior_curvature(
        self, slopes: Float64[Tensor, " p"], bends: Float64[Tensor, " p"]
    ) -> Float64[Tensor, "p p"]:
        """Of minus the log prior, per point."""
        tensors, size = self.parameters.tensors, self.parameters.size
        matrix = torch.zeros(size, size, dtype=torch.float64)
        with torch.enable_grad():
            logs = [
                prior.log_prob(closure(module)).sum() for _, module, prior, closure, _ in self.mll.named_priors()
            ]
            if not logs:
                return matrix
            total = torch.stack([log.double() for log in logs]).sum() / self.points
            gradients = torch.autograd.grad(
                total, tensors, create_graph=True, allow_unused=True, materialize_grads=True
            )
            flat = torch.cat([part.reshape(-1).double().cpu() for part in gradients])
            matrix -= torch.diag(flat.detach() * bends / slopes.square())
            for index, number in enumerate(flat):
                if number.requires_grad:
                    row = torch.autograd.grad(
                        number, tensors, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    matrix[index] = -torch.cat([part.reshape(-1).double().cpu() for part in row])
        return matrix * slopes * slopes.unsqueeze(1)

