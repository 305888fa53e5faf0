"""What the estimator refuses, warns of, and leaves behind when a fit fails."""

from __future__ import annotations

import copy

import gpytorch
import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, ExpSineSquared, WhiteKernel

from gp_rangeformer.sklearn import RangeFormerRegressor
from gp_rangeformer.sklearn.negative_variances import not_negative
from gp_rangeformer.sklearn.supported import KernelError
from tests.sklearn_estimator.problem import KERNEL, NEW, N, X, Y, both_paths


@both_paths
def test_rows_twice_without_noise_are_refused_with_remedies() -> None:
    twice, y = np.vstack([X, X]), np.concatenate([Y[:, 0], Y[:, 0] + 1])
    with pytest.raises(np.linalg.LinAlgError, match="alpha"):
        RangeFormerRegressor(RBF(0.5), alpha=0.0).fit(twice, y)
    kept = RangeFormerRegressor(RBF(0.5), alpha=0.0, optimizer=None)
    with pytest.raises(np.linalg.LinAlgError, match="WhiteKernel"):
        kept.fit(twice, y)
    fitted = RangeFormerRegressor(RBF(0.5) + WhiteKernel(0.1), alpha=0.0, optimizer=None).fit(twice, y)
    assert fitted.log_marginal_likelihood(np.log([0.5, 1e-30])) == -np.inf
    value, gradient = fitted.log_marginal_likelihood(np.log([0.5, 1e-30]), eval_gradient=True)
    assert value == -np.inf
    assert not gradient.any()


@both_paths
def test_a_fit_that_fails_leaves_no_earlier_one_behind() -> None:
    estimator = RangeFormerRegressor(KERNEL, optimizer=None).fit(X, Y[:, 0])
    with pytest.raises(KernelError):
        estimator.set_params(kernel=ExpSineSquared()).fit(X, 100 * Y[:, 0])
    with pytest.raises(NotFittedError):
        estimator.log_marginal_likelihood()


def test_a_copy_of_what_failed_is_not_fitted_either() -> None:
    X = np.linspace(0, 6, 40)[:, None]
    estimator = RangeFormerRegressor(RBF() + WhiteKernel(0.1), optimizer=None).fit(X, np.sin(X[:, 0]))
    with pytest.raises(KernelError):
        estimator.set_params(kernel="no such kernel").fit(X, X[:, 0])
    with pytest.raises(NotFittedError):
        copy.deepcopy(estimator).log_marginal_likelihood()


def test_targets_far_from_zero_are_centred_before_they_are_float32() -> None:
    X = np.linspace(0, 6, 60)[:, None]
    y = np.sin(X[:, 0]) + 0.1 * np.random.default_rng(0).normal(size=60)
    options = {"kernel": RBF() + WhiteKernel(0.1), "normalize_y": True, "optimizer": None, "dtype": "float32"}
    near, far = (RangeFormerRegressor(**options).fit(X, y + offset).predict(X) - offset for offset in (0, 2.0**23))
    # y + 2^23 is rounded to 2^-29 in float64; in float32 it would be to whole numbers.
    assert np.abs(far - near).max() < 1e-4


@both_paths
def test_equal_targets_are_normalised_to_zeros() -> None:
    estimator = RangeFormerRegressor(KERNEL, optimizer=None, normalize_y=True).fit(X, np.full(N, 0.1))
    # Their deviation is rounding, which is not scaled up.
    assert np.abs(estimator.y_train_).max() < 1e-15
    np.testing.assert_allclose(estimator.predict(NEW), 0.1, rtol=1e-14)


def test_negative_variances_beyond_rounding_are_said() -> None:
    rounded, prior = np.array([-1e-12, 0.5]), np.ones(2)
    assert not_negative(rounded, prior).tolist() == [0.0, 0.5]
    with pytest.warns(UserWarning, match="nearly singular"):
        assert not_negative(rounded * 1e9, prior)[0] == 0


@both_paths
def test_where_float64_ends_a_warning_says_so() -> None:
    # Without noise but alpha, and targets whose variance asks for a scale that float64 has no digits for.
    y = 1e5 * (X @ [1.0, 2.0])
    with pytest.warns(ConvergenceWarning, match="float64 ends here"):
        RangeFormerRegressor(ConstantKernel(1e3, (1e-5, 1e12)) * RBF(1.0, (0.1, 1e3)), alpha=1e-10).fit(X, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": 3}, "kernel must be"),
        ({"optimizer": "fmin_l_bfgs_b"}, "optimizer must be"),
        ({"optimizer": lambda *_: None}, "log_marginal_likelihood"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"alpha": np.ones(3)}, "60 rows"),
        ({"alpha": "much"}, "alpha must be"),
        ({"alpha": np.nan}, "alpha must be"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"n_restarts_optimizer": -1}, "n_restarts_optimizer"),
        ({"n_restarts_optimizer": 1, "kernel": ConstantKernel(1.0, (0.0, 10.0)) * RBF()}, "finite"),
        ({"n_targets": 3}, "n_targets"),
        ({"n_targets": 0}, "n_targets"),
        ({"normalize_y": "yes"}, "normalize_y must be True or False"),
        ({"copy_X_train": 1}, "copy_X_train must be True or False"),
        ({"device": "gpu"}, "device='gpu' is none that PyTorch has"),
        ({"solver": "exact"}, "solver"),
        ({"kernel": WhiteKernel()}, "nothing but WhiteKernel"),
        ({"kernel": gpytorch.kernels.RBFKernel(batch_shape=torch.Size([2]))}, "batch shape"),
    ],
)
def test_what_cannot_be_honoured_is_named(options, words) -> None:
    with pytest.raises(ValueError, match=words), np.errstate(divide="ignore"):
        RangeFormerRegressor(**options).fit(X, Y)


def test_both_spreads_at_once_are_refused() -> None:
    with pytest.raises(RuntimeError, match="At most one"):
        RangeFormerRegressor(KERNEL).predict(NEW, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="Gradient"):
        RangeFormerRegressor(KERNEL, optimizer=None).fit(X, Y).log_marginal_likelihood(eval_gradient=True)


def test_hyperparameters_of_another_number_are_refused() -> None:
    fitted = RangeFormerRegressor(KERNEL, optimizer=None).fit(X, Y)
    with pytest.raises(ValueError, match=r"theta has shape \(1,\), and kernel_\.theta has \(4,\)"):
        fitted.log_marginal_likelihood([0.0])
