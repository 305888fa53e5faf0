"""The estimator beside GaussianProcessRegressor: the same numbers at the same theta, fits as good."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import gpytorch
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.sklearn import RangeFormerRegressor
from gp_rangeformer.sklearn.optimum import TOLERANCE
from gp_rangeformer.sklearn.supported import KernelError
from tests.sklearn_estimator.problem import ALPHAS, KERNEL, KERNELS, NEW, ROUNDING, Gpr, N, X, Y, both, both_paths


@pytest.mark.parametrize("y", [Y[:, 0], Y], ids=["one", "two"])
@pytest.mark.parametrize(("alpha", "normalize_y"), [(ALPHAS[0], False), (ALPHAS[1], True)], ids=["number", "array"])
@pytest.mark.parametrize("kernel", KERNELS, ids=["ard", "dot product", "product"])
@both_paths
def test_numbers_at_the_same_theta_agree_to_rounding(kernel, alpha, normalize_y, y) -> None:
    theirs, ours = both(kernel=kernel, alpha=alpha, normalize_y=normalize_y)
    theirs.fit(X, y)
    ours.fit(X, y)
    assert ours.log_marginal_likelihood_value_ == pytest.approx(theirs.log_marginal_likelihood_value_, rel=ROUNDING)
    assert ours.log_marginal_likelihood_ == ours.log_marginal_likelihood() == ours.log_marginal_likelihood_value_
    np.testing.assert_allclose(ours.predict(NEW), theirs.predict(NEW), rtol=ROUNDING, atol=ROUNDING)
    for asked in ("return_std", "return_cov"):
        own, known = ours.predict(NEW, **{asked: True}), theirs.predict(NEW, **{asked: True})
        for mine, its in zip(own, known, strict=True):
            assert mine.shape == its.shape
            np.testing.assert_allclose(mine, its, rtol=ROUNDING, atol=ROUNDING)
    theta = kernel.theta + 0.3
    expected, slope = theirs.log_marginal_likelihood(theta, eval_gradient=True)
    value, gradient = ours.log_marginal_likelihood(theta, eval_gradient=True)
    assert value == pytest.approx(expected, rel=ROUNDING)
    np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-7)
    assert ours.log_marginal_likelihood(theta) == pytest.approx(expected, rel=ROUNDING)
    samples = ours.sample_y(NEW, 3, random_state=1)
    assert samples.shape == theirs.sample_y(NEW, 3, random_state=1).shape


@both_paths
def test_predictions_at_the_training_points_are_those_of_scikit_learn() -> None:
    # One column of targets is one output.
    theirs, ours = (each.fit(X, Y[:, :1]) for each in both(kernel=KERNEL))
    for mine, its in zip(ours.predict(X, return_std=True), theirs.predict(X, return_std=True), strict=True):
        assert mine.shape == its.shape
        np.testing.assert_allclose(mine, its, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("y", [Y[:, 0], Y], ids=["one", "two"])
@both_paths
def test_a_fit_is_as_good(y) -> None:
    start = ConstantKernel() * RBF(np.ones(2).tolist()) + WhiteKernel()  # type: ignore[arg-type]
    theirs = Gpr(start, normalize_y=True).fit(X, y)
    ours = RangeFormerRegressor(start, normalize_y=True).fit(X, y)
    assert ours.log_marginal_likelihood_value_ >= theirs.log_marginal_likelihood_value_ - N * TOLERANCE
    assert type(ours.kernel_) is type(start)
    assert start.theta.tolist() == [0.0] * 4
    result = ours.fit_result_
    assert result is not None
    assert result.converged
    # At the value's own theta, which is that of kernel_.
    again = ours.log_marginal_likelihood(ours.kernel_.theta)
    assert again == pytest.approx(ours.log_marginal_likelihood_value_, rel=1e-12)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-3)
    assert 0 < ours.noise_level_ < 0.1


@both_paths
def test_fixed_hyperparameters_stay_and_bounds_hold() -> None:
    kernel = ConstantKernel(1.7, "fixed") * RBF(1.3, (1.2, 1.4)) + WhiteKernel(0.1, (1e-3, 10))
    with pytest.warns(ConvergenceWarning, match=r"length_scale at 1\.[24]"):
        found: Any = RangeFormerRegressor(kernel).fit(X, Y[:, 1]).kernel_
    assert found.k1.k1.constant_value == 1.7
    assert found.k1.k2.length_scale in (pytest.approx(1.2), pytest.approx(1.4))
    theirs = Gpr(kernel)
    with pytest.warns(ConvergenceWarning):
        theirs.fit(X, Y[:, 1])
    np.testing.assert_allclose(found.theta, theirs.kernel_.theta, atol=1e-2)


@both_paths
def test_nothing_to_fit_is_left_as_it_is() -> None:
    kernel = ConstantKernel(1.7, "fixed") * RBF(1.3, "fixed")
    estimator = RangeFormerRegressor(kernel, alpha=0.1).fit(X, Y[:, 0])
    assert estimator.kernel_ == kernel
    assert estimator.fit_result_ is None
    kept = RangeFormerRegressor(KERNEL, optimizer=None).fit(X, Y[:, 0])
    assert kept.kernel_ == KERNEL


@both_paths
def test_restarts_find_what_the_first_start_does_not() -> None:
    x = np.linspace(0, 10, 40)[:, None]
    y = np.sin(3 * x[:, 0]) + 0.1 * np.random.default_rng(1).normal(size=40)
    # From so long a length-scale everything is noise.
    kernel = ConstantKernel(1.0, (0.1, 10)) * RBF(50.0, (0.05, 100.0)) + WhiteKernel(1.0, (1e-3, 10))
    with pytest.warns(ConvergenceWarning, match="length_scale at 100"):
        one = RangeFormerRegressor(kernel).fit(x, y)
    several, again = (RangeFormerRegressor(kernel, n_restarts_optimizer=2, random_state=0).fit(x, y) for _ in range(2))
    assert several.log_marginal_likelihood_value_ > one.log_marginal_likelihood_value_ + 10
    assert several.kernel_ == again.kernel_
    theirs = Gpr(kernel, n_restarts_optimizer=2, random_state=0).fit(x, y)
    assert several.log_marginal_likelihood_value_ >= theirs.log_marginal_likelihood_value_ - 40 * TOLERANCE


@both_paths
def test_a_kernel_by_name_is_learned_with_its_noise() -> None:
    estimator = RangeFormerRegressor("matern32", normalize_y=True).fit(X, Y[:, 0])
    kernel: Any = estimator.kernel_
    assert len(kernel.k1.k2.length_scale) == 2
    assert kernel.k1.k2.nu == 1.5
    assert kernel.k2.noise_level == pytest.approx(estimator.noise_level_)
    with pytest.raises(KernelError, match="matern32"):
        RangeFormerRegressor("matern").fit(X, Y[:, 0])


def test_a_gpytorch_kernel_is_fitted_beside_noise() -> None:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))
    before = copy.deepcopy(kernel.state_dict())
    estimator = RangeFormerRegressor(kernel, normalize_y=True, alpha=1e-6).fit(X, Y[:, 0])
    own = RangeFormerRegressor("rbf", normalize_y=True, alpha=1e-6).fit(X, Y[:, 0])
    assert type(estimator.kernel_) is gpytorch.kernels.ScaleKernel
    assert all(torch.equal(kernel.state_dict()[name], value) for name, value in before.items())
    assert estimator.log_marginal_likelihood_ == pytest.approx(own.log_marginal_likelihood_, abs=2 * N * TOLERANCE)
    for mine, its in zip(estimator.predict(NEW, return_std=True), own.predict(NEW, return_std=True), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-2)
    restored = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_allclose(restored.predict(NEW), estimator.predict(NEW), rtol=1e-12)
    assert restored.noise_level_ == estimator.noise_level_
    with pytest.raises(ValueError, match="theta"):
        estimator.log_marginal_likelihood(np.zeros(4))
    with pytest.raises(ValueError, match="n_restarts_optimizer"):
        RangeFormerRegressor(kernel, n_restarts_optimizer=1).fit(X, Y)


def test_priors_of_a_gpytorch_kernel_count_in_the_fit_and_not_in_the_likelihood() -> None:
    prior = gpytorch.priors.LogNormalPrior(2.0, 0.01)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(lengthscale_prior=prior))
    estimator = RangeFormerRegressor(kernel, normalize_y=True).fit(X, Y[:, 0])
    fitted: Any = estimator.kernel_
    lengthscale, scale = fitted.base_kernel.lengthscale.item(), fitted.outputscale.item()
    assert np.log(lengthscale) == pytest.approx(2.0, abs=0.1)
    same = ConstantKernel(scale) * RBF(lengthscale) + WhiteKernel(estimator.noise_level_)
    theirs = Gpr(same, optimizer=None, normalize_y=True).fit(X, Y[:, 0])
    assert estimator.log_marginal_likelihood_ == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-8)


@pytest.mark.parametrize("targets", [None, 2])
def test_the_prior_before_a_fit_is_that_of_scikit_learn(targets) -> None:
    options = {"kernel": KERNEL, "n_targets": targets}
    theirs, ours = Gpr(**options), RangeFormerRegressor(**options)
    for asked in ("return_std", "return_cov"):
        for mine, its in zip(ours.predict(NEW, **{asked: True}), theirs.predict(NEW, **{asked: True}), strict=True):
            np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(ours.predict(NEW), theirs.predict(NEW))
    np.testing.assert_array_equal(ours.sample_y(NEW, 4), theirs.sample_y(NEW, 4))
    with pytest.raises(NotFittedError):
        ours.log_marginal_likelihood()


def test_the_prior_of_a_gpytorch_kernel() -> None:
    kernel = gpytorch.kernels.RBFKernel()
    mean, covariance = RangeFormerRegressor(kernel).predict(NEW, return_cov=True)
    assert not mean.any()
    with torch.no_grad():
        expected = copy.deepcopy(kernel).double()(torch.tensor(NEW)).to_dense().numpy() + np.eye(7)
    np.testing.assert_allclose(covariance, expected, rtol=1e-12)
    _, deviation = RangeFormerRegressor(kernel).predict(NEW, return_std=True)
    np.testing.assert_allclose(deviation, np.sqrt(2), rtol=1e-7)


@both_paths
def test_samples_have_the_posterior_s_moments() -> None:
    estimator = RangeFormerRegressor(KERNEL, optimizer=None).fit(X, Y[:, 0])
    mean, deviation = estimator.predict(NEW, return_std=True)
    count = 4000
    samples = estimator.sample_y(NEW, count, random_state=0)
    # Five standard errors.
    np.testing.assert_allclose(samples.mean(1), mean, atol=5 * deviation.max() / np.sqrt(count))
    np.testing.assert_allclose(samples.std(1), deviation, rtol=5 / np.sqrt(2 * count))


@both_paths
def test_a_pickled_estimator_predicts_the_same() -> None:
    estimator = RangeFormerRegressor(KERNEL).fit(X, Y)
    for restored in (pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)):
        for mine, its in zip(
            restored.predict(NEW, return_std=True), estimator.predict(NEW, return_std=True), strict=True
        ):
            np.testing.assert_allclose(mine, its, rtol=1e-12)
        assert restored.fit_result_ == estimator.fit_result_
    assert not hasattr(clone(estimator), "kernel_")
    assert pickle.loads(pickle.dumps(RangeFormerRegressor())).get_params() == RangeFormerRegressor().get_params()


def test_pipelines_data_frames_and_searches() -> None:
    frame = pd.DataFrame(X, columns=["east", "north"])
    target = pd.Series(Y[:, 0], name="height")
    pipeline = make_pipeline(StandardScaler(), RangeFormerRegressor(KERNEL)).set_output(transform="pandas")
    pipeline.fit(frame, target)
    assert pipeline[-1].feature_names_in_.tolist() == ["east", "north"]
    assert isinstance(pipeline.predict(frame), np.ndarray)
    estimator = RangeFormerRegressor(KERNEL, optimizer=None).fit(frame, target)
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame[["north", "east"]])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), RangeFormerRegressor(optimizer=None)),
        {"rangeformerregressor__kernel": [KERNEL, ConstantKernel(1e-3) * RBF(1e-2) + WhiteKernel(1.0)]},
        cv=3,
    ).fit(frame, target)
    assert search.best_params_["rangeformerregressor__kernel"] == KERNEL


# Processes import PyTorch first, each for itself.
@pytest.mark.parametrize("backend", [pytest.param("loky", marks=pytest.mark.big), "threading"])
def test_joblib_gives_what_one_process_gives(backend) -> None:
    estimator = RangeFormerRegressor(KERNEL, optimizer=None)
    alone = cross_val_score(estimator, X, Y[:, 0], cv=4)
    with joblib.parallel_backend(backend, n_jobs=2):
        together = cross_val_score(estimator, X, Y[:, 0], cv=4)
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert settings.rangeformer.off()


def test_fits_in_threads_leave_the_settings_alone() -> None:
    results: list[RangeFormerRegressor] = []
    solver = gp_rangeformer.Exact()
    threads = [
        threading.Thread(target=lambda: results.append(RangeFormerRegressor(KERNEL, solver=solver).fit(X, Y[:, 0])))
        for _ in range(3)
    ]
    before = settings.solver.value()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.log_marginal_likelihood_ for each in results}) == 1
    assert len(results) == 3
    assert settings.rangeformer.off()
    assert settings.solver.value() is before


def test_the_plug_in_answers_with_the_solver_that_was_given() -> None:
    small = RangeFormerRegressor(KERNEL, solver=gp_rangeformer.Certified(rank=20))
    with settings.min_size(1), gp_rangeformer.collect_reports() as reports:
        small.fit(X, Y[:, 0])
        small.predict(NEW)
    assert "rangeformer" in {report.solver for report in reports}
    exact = RangeFormerRegressor(KERNEL, solver=gp_rangeformer.Exact())
    with settings.min_size(1), gp_rangeformer.collect_reports() as reports:
        exact.fit(X, Y[:, 0])
    assert {report.solver for report in reports} == {"exact"}


def test_a_likelihood_is_exact_where_the_certified_solver_fits() -> None:
    estimator = RangeFormerRegressor(KERNEL)
    with settings.min_size(1):
        estimator.fit(X, Y[:, 0])
        value = estimator.log_marginal_likelihood(KERNEL.theta)
    result = estimator.fit_result_
    assert result is not None
    assert result.report is not None
    assert result.report.solver == "rangeformer"
    for found, kernel in ((value, KERNEL), (estimator.log_marginal_likelihood_, estimator.kernel_)):
        theirs = Gpr(kernel, optimizer=None).fit(X, Y[:, 0])
        assert found == pytest.approx(theirs.log_marginal_likelihood_value_, rel=ROUNDING)


def test_float32_is_near_float64() -> None:
    wide = RangeFormerRegressor(KERNEL, optimizer=None).fit(X, Y[:, 0])
    narrow = RangeFormerRegressor(KERNEL, optimizer=None, dtype="float32").fit(X, Y[:, 0])
    assert narrow.X_train_.dtype == np.float32
    # Entries of K are rounded to 6e-8, which noise of 0.02 makes a hundred times as much of.
    np.testing.assert_allclose(narrow.predict(NEW), wide.predict(NEW), atol=1e-4)
    with pytest.raises(np.linalg.LinAlgError, match="alpha"):
        RangeFormerRegressor(ConstantKernel() * RBF(5.0), optimizer=None, dtype="float32").fit(X, Y[:, 0])


@both_paths
def test_what_is_set_after_a_fit_is_for_the_next_one() -> None:
    X = np.linspace(0, 6, 40)[:, None]
    estimator = RangeFormerRegressor(RBF() + WhiteKernel(0.1), alpha=1e-6, optimizer=None).fit(X, np.sin(X[:, 0]))
    before = estimator.predict(X)
    estimator.set_params(alpha=np.ones(3), dtype="float32")
    for found in (estimator, copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert np.array_equal(found.predict(X), before)


@both_paths
@pytest.mark.parametrize(
    "kernel",
    [
        WhiteKernel(0.3) * RBF(0.7) + RBF(1.3),
        (RBF(1.3) + WhiteKernel(0.2)) * (ConstantKernel(1.4) * RBF(0.7)) ** 2,
    ],
    ids=["a factor of noise alone", "a factor of both"],
)
def test_likelihoods_of_products_with_noise_are_those_of_scikit_learn(kernel) -> None:
    theirs, ours = (each.fit(X, Y[:, 0]) for each in both(kernel=kernel))
    known, slope = theirs.log_marginal_likelihood(kernel.theta, eval_gradient=True)
    value, gradient = ours.log_marginal_likelihood(kernel.theta, eval_gradient=True)
    assert value == pytest.approx(known, rel=ROUNDING)
    np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-7)


@both_paths
def test_a_scale_that_only_noise_has_is_fitted() -> None:
    # Nothing else can make noise of variance 1 as small as that of the targets.
    kernel = (ConstantKernel(1.0) * RBF(1.0, "fixed")) * WhiteKernel(1.0, "fixed") + ConstantKernel() * RBF()
    theirs, ours = Gpr(kernel).fit(X, Y[:, 0]), RangeFormerRegressor(kernel).fit(X, Y[:, 0])
    assert ours.noise_level_ < 0.1
    assert ours.log_marginal_likelihood_value_ >= theirs.log_marginal_likelihood_value_ - N * TOLERANCE
