"""What predictions are held against: float64 Cholesky, outside every timing, a chunk of test points at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.lab.bench.prediction_data import Fitted

_CHUNK = 1000


@dataclass(frozen=True)
class Errors:
    """``mean``: the largest, in standard deviations of an observation; ``variance`` (root mean square) and
    ``largest_variance``: of f, relative to the variance of an observation."""

    mean: float
    variance: float
    largest_variance: float


class ExactModel:
    """Exact predictions of a model, from a factor that GPyTorch's kernel and torch make. n^3 / 3 multiplications.

    The data and parameters are those of ``fitted`` in float64, rounded as they are there.
    """

    def __init__(self, fitted: Fitted) -> None:
        self._fitted = fitted.widened()
        self._model: Any = self._fitted.build()
        with settings.rangeformer(False), torch.no_grad():
            self.noise = self._model.likelihood.noise.item()
            covariance = self._model.covar_module(self._fitted.data.train_x).to_dense()
            covariance.diagonal().add_(self.noise)
            self._factor = torch.linalg.cholesky(covariance)
            residual = self._fitted.data.train_y - self._model.mean_module.constant
            self._weights = torch.cholesky_solve(residual[:, None], self._factor)

    @torch.no_grad()
    def predict(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of f, t each in float64."""
        means, variances = [], []
        kernel, x = self._model.covar_module, self._fitted.data.train_x
        with settings.rangeformer(False):
            for chunk in points.double().split(_CHUNK):
                cross = kernel(chunk, x).to_dense()
                half = torch.linalg.solve_triangular(self._factor, cross.mT, upper=False)
                means.append((cross @ self._weights).squeeze(-1) + self._model.mean_module.constant)
                variances.append((kernel(chunk, diag=True) - half.square().sum(0)).clamp_min(0))
        return torch.cat(means), torch.cat(variances)

    @torch.no_grad()
    def left_out(self) -> Tensor:
        """Log density of every target given all others, n in float64, by the inverse itself."""
        variance = 1 / torch.cholesky_inverse(self._factor).diagonal()
        error = self._weights.squeeze(-1) * variance
        return -0.5 * (2 * math.pi * variance).log() - 0.5 * error.square() / variance


class ExactPredictions:
    """Of all the points of a model, made once."""

    def __init__(self, model: ExactModel, points: Tensor) -> None:
        self.noise = model.noise
        self.mean, self.variance = model.predict(points)

    def errors(self, block: slice, mean: Tensor, variance: Tensor) -> Errors:
        """Of what somebody said of the points of ``block``."""
        whole = self.variance[block] + self.noise
        of_mean = (mean.double() - self.mean[block]).abs() / whole.sqrt()
        of_variance = (variance.double() - self.variance[block]).abs() / whole
        root = of_variance.square().mean().sqrt()
        return Errors(float(of_mean.max()), float(root), float(of_variance.max()))
