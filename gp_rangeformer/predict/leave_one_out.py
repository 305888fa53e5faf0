"""What a model says of each of its own targets, given all others: a score that needs no test set.

Dubrule 1983; Sundararajan and Keerthi 2001: with a = A^-1 (y - m) the target y_i given all others has the variance
s_i = 1 / (A^-1)_ii and the mean y_i - a_i s_i. The hyperparameters, fitted to all targets, stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.plugin.fitted import fitted_model, keep_at_most
from gp_rangeformer.plugin.fitted_model import FittedModel
from gp_rangeformer.predict.prior import checked_model, recordable_tensors, strategy_of
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.factorisation import solve_by_factor
from gp_rangeformer.solvers.inverse_diagonal import (
    InverseDiagonal,
    audited_inverse_diagonal,
    estimated_inverse_diagonal,
    exact_inverse_diagonal,
)
from gp_rangeformer.torch_modes import no_autocast

# Multiplications of a factorisation and the inverse of its factor that an exact answer may take: about a second.
_MULTIPLICATIONS = 10**11
_LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Coverage:
    """The share of targets inside their central intervals of this ``level``, and the standard deviation that it would
    have if every target were inside with that probability by itself."""

    level: float
    share: float
    deviation: float


@dataclass(frozen=True)
class LeaveOneOut:
    """Of n targets, each given all others, in float64 and in the units of the training targets.

    ``targets``, ``mean``, ``variance`` (of the observation y_i, noise included), ``log_density`` (nats), ``pit``: the
    predictive distribution's value at y_i, uniform for a calibrated model; n each. ``variance_error``: standard error
    of the variances, relative to them, root mean square over the points, and ``score_error`` what follows for the
    score, in nats, were the errors of all points alike; 0 where they are exact. A mean is off by as much of its own
    distance from the target.
    """

    targets: Float64[Tensor, " n"]
    mean: Float64[Tensor, " n"]
    variance: Float64[Tensor, " n"]
    log_density: Float64[Tensor, " n"]
    pit: Float64[Tensor, " n"]
    variance_error: float
    score_error: float

    @property
    def score(self) -> float:
        """The mean log density, in nats: larger is better."""
        return float(self.log_density.mean())

    @property
    def rmse(self) -> float:
        """Root mean square error of the means."""
        return float((self.targets - self.mean).square().mean().sqrt())

    @property
    def coverage(self) -> tuple[Coverage, ...]:
        """At 50, 80 and 95 %."""
        n = len(self.pit)
        found = []
        for level in _LEVELS:
            share = float(((self.pit - 0.5).abs() <= level / 2).double().mean())
            found.append(Coverage(level, share, math.sqrt(level * (1 - level) / n)))
        return tuple(found)

    def summary(self, target: str | None = None, scale: float = 1.0) -> str:
        """One line.

        :param target: what was standardised, whose deviation is ``scale``: the RMSE is then in its unit.
        """
        inside = ", ".join(f"{c.share:.1%} +- {c.deviation:.1%} inside {c.level:.0%}" for c in self.coverage)
        error = f", variances +- {self.variance_error:.1%}" if self.variance_error else ""
        room = f" +- {self.score_error:.1g}" if self.score_error else ""
        nats, unit = ("nats per point", "") if target is None else ("nats per standardised point", f" in {target}")
        return f"leave-one-out: {self.score:.4f}{room} {nats}, RMSE {self.rmse * scale:.5g}{unit}; {inside}{error}"


def leave_one_out(model: torch.nn.Module) -> LeaveOneOut:
    """Leave-one-out predictions of a trained :class:`gpytorch.models.ExactGP` with its parameters as they are.

    The model is one of a single output, without a batch, in either mode; it is left as it is. Where a factorisation
    takes about a second (n below about 4,600), and for kernels that are not recognised, exact: n^3 multiplications.
    Else from a factor in the dtype of K, where the targets took one (n up to 10,000, little noise), with the error that
    refined solves find at a few points; or the variances are estimated to ``prediction_error`` (see ``variances`` of
    :class:`gp_rangeformer.Certified`): as much as predictive variances at n points. All of K as its dtype holds it:
    in float32, with noise of a thousandth of the variance, means are off by up to a tenth of their deviation from those
    of a float64 model, which no error states.

    :raises ValueError: what the model is or holds is not covered, naming the remedy.
    :raises NotPSDError: A is not positive definite.
    """
    with recordable_tensors(), no_autocast(), settings.rangeformer():
        checked_model(model, "leave_one_out")
        strategy = strategy_of(model)
        fitted = fitted_model(strategy)
        residual = (strategy.train_labels - strategy.train_prior_dist.loc).double()
        if fitted is None:
            diagonal, solution = _dense(strategy, residual)
        else:
            diagonal, solution = _diagonal(fitted), fitted.solution.squeeze(-1)
        return _left_out(model, strategy.train_labels.double(), diagonal, solution)


def _diagonal(fitted: FittedModel) -> InverseDiagonal:
    n, solver = fitted.n, fitted.solver
    factor, system = fitted.factor, None
    certified = not isinstance(solver, Certified) or solver.variances == "certified"
    exact = n**3 <= _MULTIPLICATIONS or certified
    if not exact and isinstance(solver, Certified):
        system, rounded = fitted.linear_system(), fitted.rounded
        if rounded is not None:  # which the targets took already
            audited = audited_inverse_diagonal(system, rounded)
            if audited.relative_error <= solver.prediction_error:
                return audited
        found = fitted.inverse_pairs(system)
        keep_at_most(settings.memory_limit.value())
        if found is not None:
            return estimated_inverse_diagonal(fitted.fused, fitted.noise, *found, solver.prediction_error)
    if factor is None:
        factor = fitted.factorised(system or fitted.linear_system())
    return exact_inverse_diagonal(factor)


def _dense(strategy: Any, residual: Float64[Tensor, " n"]) -> tuple[InverseDiagonal, Float64[Tensor, " n"]]:
    """Whatever the kernel is."""
    dense = strategy.lik_train_train_covar.to_dense().double()
    factor = psd_safe_cholesky(dense)
    return exact_inverse_diagonal(factor), solve_by_factor(factor, residual.unsqueeze(-1)).squeeze(-1)


def _left_out(
    model: Any, targets: Float64[Tensor, " n"], diagonal: InverseDiagonal, solution: Float64[Tensor, " n"]
) -> LeaveOneOut:
    variance = 1 / diagonal.value
    error = solution * variance
    mean = targets - error
    scale = torch.ones_like(targets)
    transform = getattr(model, "outcome_transform", None)
    if transform is not None:
        targets, mean, scale = _untransformed(transform, targets, mean)
        variance, error = variance * scale.square(), error * scale
    standard = error / variance.sqrt()
    density = -0.5 * (2 * math.pi * variance).log() - 0.5 * standard.square()
    # d log density / d log variance is -(1 + z^2) / 2, for z^2 = a^2 s.
    relative = diagonal.standard_error / diagonal.value
    score_error = float((0.5 * (1 + standard.square()) * relative).mean())
    distribution = torch.special.ndtr(standard)
    return LeaveOneOut(targets, mean, variance, density, distribution, diagonal.relative_error, score_error)


def _untransformed(transform: Any, targets: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the units of the targets that a BoTorch model was given.

    :raises ValueError: for a transform that is not a shift and a scale.
    """
    columns = torch.stack([targets, mean, mean + 1, mean + 2], dim=1)
    y, found, one, two = transform.untransform(columns.T.unsqueeze(-1))[0].squeeze(-1).unbind(0)
    if not torch.allclose(two - one, one - found, rtol=1e-6):
        raise ValueError(
            f"{type(transform).__name__} is not a shift and a scale of the targets: leave it out of the model and "
            "transform the targets beforehand"
        )
    return y, found, one - found
