"""A Gaussian process with given hyperparameters and training points: its likelihood and its predictions."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.sklearn.flag import flag, likelihoods
from gp_rangeformer.sklearn.model import Model, likelihood_of
from gp_rangeformer.sklearn.negative_variances import not_negative
from gp_rangeformer.sklearn.training import Training
from gp_rangeformer.sklearn.translation import Translated, evaluate
from gp_rangeformer.solvers.exact import Exact

# Points up to which a likelihood that was asked for by itself is exact: predictions factorise up to there, too.
_FACTORISED = 4000


class Posterior:
    """Everything in units of the targets in ``training``.

    ``mll``: an ``ExactMarginalLogLikelihood`` whose parameters are those of the kernel.
    """

    def __init__(self, training: Training, kernel: Translated) -> None:
        assert kernel.covariance is not None
        self._training, self._kernel = training, kernel
        # GPyTorch has outputs before points, and predictions of one output; the covariance is that of the first.
        x, y = training.tensor(training.x), training.tensor(training.y.T).contiguous()
        self.mll = likelihood_of(x, y, kernel.covariance, training.tensor(training.noise), kernel.white)
        outputs = y.unbind() if y.dim() > 1 else ()
        models = [Model(x, each, kernel.covariance, self.mll.likelihood) for each in outputs]
        self._models = models or [self.mll.model]

    @property
    def white(self) -> float:
        """The variance of the kernel's white noise."""
        return float(evaluate(self._kernel.white).detach())

    def log_likelihood(self) -> float:
        """log p(y) of all outputs together: exact up to 4,000 points where no solver was chosen, beyond as the solver
        estimates it.

        :raises numpy.linalg.LinAlgError: as :func:`~gp_rangeformer.sklearn.flag.flag`.
        """
        with torch.no_grad():
            return float(self._log_likelihood())

    def log_likelihood_and_gradient(self) -> tuple[float, NDArray[Any]]:
        """And its gradient with respect to theta, of a kernel that was translated without ``fit``."""
        with torch.enable_grad():
            value = self._log_likelihood()
            if value.requires_grad:
                value.backward()
        return float(value.detach()), self._kernel.theta_gradient()

    def _log_likelihood(self) -> Tensor:
        model, solver = self.mll.model, self._training.solver
        if solver is None and len(self._training.x) <= _FACTORISED:
            solver = Exact()
        with flag(solver), likelihoods():
            model.train()
            return self.mll.likelihood(model(*model.train_inputs)).log_prob(model.train_targets).sum()

    def predict(self, x: NDArray[Any], variance: bool, covariance: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Means, t or t x q; and variances, t, or covariances, t x t, of observations without the given noise.

        :raises numpy.linalg.LinAlgError: as :func:`~gp_rangeformer.sklearn.flag.flag`.
        """
        points = self._training.tensor(x)
        with flag(self._training.solver), torch.no_grad():
            found: list[Any] = [model.eval()(points) for model in self._models]
            mean = torch.stack([each.mean for each in found], -1) if self._training.y.ndim > 1 else found[0].mean
            second, white = None, evaluate(self._kernel.white).to(mean)
            if covariance:
                second = found[0].lazy_covariance_matrix.to_dense() + white * torch.eye(len(x), device="cpu").to(mean)
            elif variance:
                prior: Any = self.mll.model.covariance(points, diag=True)
                own = found[0].lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2)
                second = torch.from_numpy(not_negative(own.cpu().numpy(), prior.cpu().numpy())).to(mean) + white
        # In float64, also where they are not: NumPy 1 would scale them back in float32.
        return mean.double().cpu().numpy(), None if second is None else second.double().cpu().numpy()
