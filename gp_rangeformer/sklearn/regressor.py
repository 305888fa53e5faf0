"""The estimator."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import kernels as sk
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, validate_data

from gp_rangeformer.fit import FitResult
from gp_rangeformer.sklearn.few_points import FewPoints
from gp_rangeformer.sklearn.named import named_kernel
from gp_rangeformer.sklearn.optimum import (
    best_theta,
    log_likelihood,
    log_likelihood_and_gradient,
    maximise,
    posterior_of,
    warn_at_bounds,
)
from gp_rangeformer.sklearn.parameters import FIT_MLL, check_parameters, variances
from gp_rangeformer.sklearn.posterior import Posterior
from gp_rangeformer.sklearn.prior import START_NOISE, prior_spread
from gp_rangeformer.sklearn.supported import KernelError, check_kernel, variances_of
from gp_rangeformer.sklearn.targets import for_outputs, targets_of
from gp_rangeformer.sklearn.training import Training
from gp_rangeformer.sklearn.translation import Translated, translate
from gp_rangeformer.torch_modes import on_host


class RangeFormerRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Exact Gaussian process regression, in the place of scikit-learn's ``GaussianProcessRegressor``: the same
    parameters, attributes and numbers, by this package's fits and solvers.

    The mean is zero, or that of the targets with ``normalize_y``. Several outputs share the kernel and are otherwise
    independent. Standard deviations, covariances and samples are those of observations: with the noise of
    ``WhiteKernel``, without ``alpha``.

    :param kernel: of scikit-learn: sums, products and whole powers of ConstantKernel, WhiteKernel, RBF, Matern (nu 0.5,
        1.5, 2.5, infinity), RationalQuadratic, ExpSineSquared (of one column) and DotProduct. Bounds hold, and what is
        "fixed" stays. By name ("rbf", "matern12", "matern32", "matern52", "rq", "periodic", "linear", sums as in
        "linear+rbf"): a variance times that kernel, a length scale for each column, and a WhiteKernel. A GPyTorch
        kernel: with its own constraints and priors, beside learned noise between 1e-5 and 1e5. None:
        ``ConstantKernel() * RBF()``.
    :param alpha: variances of given noise, one for all rows or one for each, added to the diagonal of K.
    :param optimizer: "fit_mll", this package's (:func:`gp_rangeformer.fit.fit_mll`), or None: the kernel stays as it
        is. Others are refused. While n^2 times the number of free hyperparameters is at most 200,000 (n = 200: five),
        a fit of a scikit-learn kernel goes scikit-learn's way, by L-BFGS between the bounds, and on by ``fit_mll``
        where that does not arrive; ``solver``, float32, another device or a smaller ``settings.min_size`` ask for
        ``fit_mll`` from the start.
    :param n_restarts_optimizer: further fits of a scikit-learn kernel from starts that are uniform between its bounds,
        as logarithms; the highest likelihood wins.
    :param normalize_y: whether targets are shifted to mean zero and scaled to variance one, and predictions back.
    :param copy_X_train: whether ``X_train_`` and ``y_train_`` are copies.
    :param n_targets: outputs of a prior, before ``fit``.
    :param random_state: of the restarts. A fit from one start needs none.
    :param dtype: "float64" or "float32".
    :param solver: ``gp_rangeformer.Certified(...)`` or ``Exact(...)``; None for the one of ``settings.solver``.
    :param device: of PyTorch, on which everything is computed.

    After ``fit``: ``kernel_``, as ``kernel`` with the fitted hyperparameters, a kernel of the same kind;
    ``noise_level_``, the variance of its white noise, in units of the normalised targets;
    ``log_marginal_likelihood_value_``, the same as ``log_marginal_likelihood_``, of all outputs together: exact up to
    4,000 rows where no ``solver`` was given, beyond an estimate;
    ``fit_result_``, a :class:`gp_rangeformer.fit.FitResult` (None without a fit); ``X_train_``, ``y_train_``
    (normalised), ``n_features_in_``, ``feature_names_in_``. GaussianProcessRegressor's ``L_`` and ``alpha_`` are not
    there: no factor need be.
    """

    def __init__(
        self,
        kernel: sk.Kernel | Kernel | str | None = None,
        *,
        alpha: float | NDArray[np.floating] = 1e-10,
        optimizer: str | None = FIT_MLL,
        n_restarts_optimizer: int = 0,
        normalize_y: bool = False,
        copy_X_train: bool = True,
        n_targets: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        dtype: str = "float64",
        solver: Any = None,
        device: str = "cpu",
    ) -> None:
        self.kernel = kernel
        self.alpha = alpha
        self.optimizer = optimizer
        self.n_restarts_optimizer = n_restarts_optimizer
        self.normalize_y = normalize_y
        self.copy_X_train = copy_X_train
        self.n_targets = n_targets
        self.random_state = random_state
        self.dtype = dtype
        self.solver = solver
        self.device = device

    @on_host()
    def fit(self, X: Any, y: Any) -> RangeFormerRegressor:
        """Learn the kernel's hyperparameters, and what predictions need.

        :param X: n x d numbers, an array or a DataFrame.
        :param y: n numbers, or n x q.
        :raises ValueError: X, y or a parameter that cannot be; the message names it.
        :raises KernelError: a ValueError: the kernel has no counterpart here.
        :raises numpy.linalg.LinAlgError: the kernel's matrix plus alpha is not positive definite.
        """
        check_parameters(self)
        # A fit that fails leaves nothing of an earlier one that could be taken for its own.
        self._fitted_with: dict[str, Any] | None = None
        self.__dict__.pop("kernel_", None)
        rows: Any
        rows, targets = validate_data(self, X, y, multi_output=True, y_numeric=True)
        rows = self._in_dtype(rows)
        values, self._y_mean, self._y_std = targets_of(targets, bool(self.normalize_y))
        outputs = 1 if values.ndim == 1 else values.shape[1]
        if self.n_targets not in (None, outputs):
            raise ValueError(f"y has {outputs} outputs, n_targets is {self.n_targets}")
        self.X_train_ = np.array(rows) if self.copy_X_train else rows
        self.y_train_ = values.astype(self.dtype, copy=bool(self.copy_X_train))
        kernel, training = self._start(rows.shape[1]), self._training()
        if isinstance(kernel, sk.Kernel):
            check_kernel(kernel, rows.shape[1])
            if variances_of(kernel).smooth == 0:
                raise KernelError("the kernel is nothing but WhiteKernel: add a kernel of the points")
            self._fit_theta(training, kernel)
        else:
            self._fit_module(training, kernel)
        # What is set later is for the next fit.
        self._fitted_with = {name: copy.copy(getattr(self, name)) for name in ("alpha", "dtype", "solver", "device")}
        return self

    def _given(self, name: str) -> Any:
        """A parameter as it was when the model was fitted, if it is."""
        return (self.__dict__.get("_fitted_with") or {}).get(name, getattr(self, name))

    def _in_dtype(self, rows: Any) -> NDArray[Any]:
        """What scikit-learn takes for numbers; it would convert text, were it asked for a dtype."""
        dtype = self._given("dtype")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused
            return rows if rows.dtype == dtype else check_array(rows, dtype=dtype, input_name="X", estimator=self)

    def _fit_theta(self, training: Training, kernel: Any) -> None:
        """Of a scikit-learn kernel."""
        self.kernel_: Any
        self.log_marginal_likelihood_value_: float
        self.fit_result_: FitResult | None = None
        theta = kernel.theta
        if self.optimizer is None or len(theta) == 0:
            self.kernel_ = kernel
            self._posterior = self._made(training)
            self.log_marginal_likelihood_value_ = self._posterior.log_likelihood()
        else:
            starts, bounds = [theta], kernel.bounds
            if self.n_restarts_optimizer > 0:
                if not np.isfinite(bounds).all():
                    raise ValueError("n_restarts_optimizer > 0 draws starts between bounds: all of them must be finite")
                rng, (lower, upper) = check_random_state(self.random_state), bounds.T
                starts += [rng.uniform(lower, upper) for _ in range(self.n_restarts_optimizer)]
            best = best_theta(training, kernel, starts, bounds)
            self.fit_result_, self.log_marginal_likelihood_value_ = best.result, best.value
            self.kernel_ = kernel.clone_with_theta(best.theta)
            warn_at_bounds(kernel, best.theta, bounds)
            self._posterior = best.points or self._made(training)
        self.noise_level_ = variances_of(self.kernel_).white or 0.0

    def _fit_module(self, training: Training, kernel: Kernel) -> None:
        """Of a GPyTorch kernel."""
        self.kernel_ = kernel
        point, columns = training.tensor(training.x[:1]), training.x.shape[1]
        try:
            with torch.no_grad():
                kernel.to(point)(point).to_dense()
        except (RuntimeError, IndexError, ValueError) as error:
            raise KernelError(f"the GPyTorch kernel cannot be evaluated at X of {columns} columns: {error}") from error
        translated = _beside_noise(kernel, START_NOISE, fit=True)
        self.fit_result_ = None if self.optimizer is None else maximise(training, translated)
        self._posterior = posterior = Posterior(training, translated)
        self.noise_level_ = posterior.white
        self.log_marginal_likelihood_value_ = self._posterior.log_likelihood()

    @on_host()
    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Means at t points, t or t x q; with ``return_std`` also standard deviations of the same shape, with
        ``return_cov`` also covariances, t x t or t x t x q. Before ``fit``: of the prior.

        :raises RuntimeError: both are asked for.
        :raises NotFittedError: the last fit failed.
        """
        if return_std and return_cov:
            raise RuntimeError("At most one of return_std or return_cov can be requested.")
        if not self.__sklearn_is_fitted__():
            return self._predict_prior(X, return_std, return_cov)
        rows = self._in_dtype(validate_data(self, X, reset=False))
        mean, second = self._posterior.predict(rows, return_std, return_cov)
        y = mean * self._y_std + self._y_mean
        if second is None:
            return y
        spread = for_outputs(second, self._y_std**2)
        return y, spread if return_cov else np.sqrt(spread)

    def _predict_prior(self, X: Any, return_std: bool, return_cov: bool) -> Any:
        if "_fitted_with" in self.__dict__:
            raise NotFittedError(f"the last fit of this {type(self).__name__} failed: fit it again, or clone it")
        check_parameters(self)
        rows = self._in_dtype(validate_data(self, X, reset=False))
        outputs = self.n_targets or 1
        shape = (outputs,) if outputs > 1 else ()
        mean = np.zeros((len(rows), *shape))
        if not (return_std or return_cov):
            return mean
        spread = prior_spread(self._start(rows.shape[1]), rows, return_cov, self.device)
        spread = for_outputs(spread, np.ones(shape))
        return mean, spread if return_cov else np.sqrt(spread)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> NDArray[np.floating]:
        """Functions of the posterior (of the prior before ``fit``) at t points: t x n_samples, or t x q x n_samples.
        O(t^3); ``gp_rangeformer.predict.sample_paths`` has no such limit."""
        rng = check_random_state(random_state)
        mean, covariance = self.predict(X, return_cov=True)
        if mean.ndim == 1:
            return rng.multivariate_normal(mean, covariance, n_samples).T
        outputs = range(mean.shape[1])
        drawn = [rng.multivariate_normal(mean[:, j], covariance[..., j], n_samples).T for j in outputs]
        return np.stack(drawn, axis=1)

    @on_host()
    def log_marginal_likelihood(
        self, theta: ArrayLike | None = None, eval_gradient: bool = False, clone_kernel: bool = True
    ) -> Any:
        """log p(y) of the training targets (normalised, if they were) at ``theta``, the logarithms of a scikit-learn
        kernel's free hyperparameters, or where the fit ended; -infinity where the matrix is not positive definite.

        :param eval_gradient: whether to return the gradient with respect to ``theta`` as well.
        :param clone_kernel: False: ``kernel_`` has ``theta`` afterwards; predictions stay those of the fit.
        :raises ValueError: a gradient without ``theta``; ``theta`` of a GPyTorch kernel or another shape.
        :raises NotFittedError: before ``fit``.
        """
        self._check_fitted()
        if theta is None:
            if eval_gradient:
                raise ValueError("Gradient can only be evaluated for theta!=None")
            return self.log_marginal_likelihood_value_
        if not isinstance(self.kernel_, sk.Kernel):
            raise ValueError("theta belongs to kernels of scikit-learn: of a GPyTorch kernel the fitted value is known")
        asked, own = log_likelihood_and_gradient if eval_gradient else log_likelihood, self.kernel_.theta
        numbers = np.asarray(theta, np.float64)
        if numbers.shape != own.shape:
            raise ValueError(f"theta has shape {numbers.shape}, and kernel_.theta has {own.shape}: one number each")
        found = asked(self._training(), self.kernel_, numbers)
        if not clone_kernel:
            self.kernel_ = self.kernel_.clone_with_theta(numbers)
        return found

    @property
    def log_marginal_likelihood_(self) -> float:
        self._check_fitted()
        return self.log_marginal_likelihood_value_

    def _start(self, columns: int) -> Any:
        """A copy of the kernel that was given, for points with so many columns."""
        if self.kernel is None:
            return sk.ConstantKernel() * sk.RBF()
        if isinstance(self.kernel, str):
            return named_kernel(self.kernel, columns)
        return clone(self.kernel) if isinstance(self.kernel, sk.Kernel) else copy.deepcopy(self.kernel)

    def _training(self) -> Training:
        """From what is kept."""
        noise = variances(self._given("alpha"), len(self.X_train_))
        return Training(self.X_train_, self.y_train_, noise, self._given("solver"), self._given("device"))

    def _made(self, training: Training) -> FewPoints | Posterior:
        """Of what was fitted."""
        if isinstance(self.kernel_, sk.Kernel):
            return posterior_of(training, self.kernel_)
        return Posterior(training, _beside_noise(self.kernel_, self.noise_level_, fit=False))

    def __getstate__(self) -> dict[str, Any]:
        # What predictions keep is made anew from the rest.
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_posterior"}

    @on_host()
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.__sklearn_is_fitted__():
            self._posterior = self._made(self._training())

    def __sklearn_is_fitted__(self) -> bool:
        return bool(self.__dict__.get("_fitted_with"))

    def _check_fitted(self) -> None:
        # Not by scikit-learn's function, which lets estimators pass that predict before they are fitted.
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} has no likelihood yet: fit it first")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


def _beside_noise(kernel: Kernel, noise: float, *, fit: bool) -> Translated:
    """A GPyTorch kernel as it is, and noise as scikit-learn's WhiteKernel has it."""
    white = translate(sk.WhiteKernel(noise), 1, fit=fit)
    return Translated(kernel, None, white.white)
