"""What the estimator is given: rows in every form, targets that overflow, kernels that others hold, and what is left
behind."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel

from gp_rangeformer.sklearn import RangeFormerRegressor
from gp_rangeformer.sklearn.supported import KernelError

both_paths = pytest.mark.usefixtures("path")
RNG = np.random.default_rng(0)
N = 40
X, NEW = RNG.uniform(-2, 2, size=(N, 2)), RNG.uniform(-2, 2, size=(7, 2))
Y = np.stack([np.sin(X.sum(1)), 3 + np.cos(2 * X[:, 0])], axis=1) + 0.1 * RNG.normal(size=(N, 2))
LENGTHS: Any = [1.1, 0.8]
KERNEL: Any = 1.4 * RBF(LENGTHS) + WhiteKernel(0.02)


def both(**options: Any) -> tuple[Any, Any]:
    theirs: Any = GaussianProcessRegressor
    return theirs(optimizer=None, **options), RangeFormerRegressor(optimizer=None, **options)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@both_paths
def test_frames_are_asked_for_by_name_and_order_as_scikit_learn_does() -> None:
    frame = pd.DataFrame(X, columns=["east", "north"])
    theirs, ours = (each.fit(frame, Y[:, 0]) for each in both(kernel=KERNEL))
    asked = {
        "in the same order": frame[["north", "east"]],
        "yet now missing": frame[["east"]],
        "unseen at fit time": frame.assign(up=1.0),
        "1 features": X[:, :1],
    }
    for words, rows in asked.items():
        for estimator in (theirs, ours):
            with pytest.raises(ValueError, match=words):
                estimator.predict(rows)
    twice = pd.concat([frame, frame["east"]], axis=1)
    for estimator in (theirs, ours):
        with pytest.raises(Exception, match=r"unique column names|feature names|columns"):
            estimator.predict(twice)
    numbered = pd.DataFrame(X)[[1, 0]]  # of negative strides
    np.testing.assert_allclose(
        ours.fit(numbered, Y[:, 0]).predict(numbered), theirs.fit(numbered, Y[:, 0]).predict(numbered), rtol=1e-8
    )


@pytest.mark.parametrize("kernel", [KERNEL, gpytorch.kernels.RBFKernel()], ids=["scikit-learn", "GPyTorch"])
@both_paths
def test_rows_in_any_layout_are_the_same_rows(kernel: Any) -> None:
    plain = RangeFormerRegressor(kernel, optimizer=None, alpha=0.1).fit(X, Y[:, 0])
    mean, deviation = plain.predict(NEW, return_std=True)
    backwards = [np.array(each[::-1, ::-1])[::-1, ::-1] for each in (X, NEW)]
    assert backwards[0].strides[0] < 0
    for rows, new in ((np.asfortranarray(X), np.asfortranarray(NEW)), backwards):
        for copied in (True, False):
            other = RangeFormerRegressor(kernel, optimizer=None, alpha=0.1, copy_X_train=copied).fit(rows, Y[:, 0])
            np.testing.assert_allclose(other.predict(new), mean, rtol=1e-10)
        unfitted = RangeFormerRegressor(kernel)
        np.testing.assert_allclose(unfitted.predict(new, return_std=True)[1], unfitted.predict(NEW, return_std=True)[1])
    assert (deviation > 0).all()


def test_numbers_as_text_are_refused_as_scikit_learn_does() -> None:
    for estimator in both(kernel=KERNEL):
        with pytest.raises(ValueError, match="strings"):
            estimator.fit(X.astype(str), Y[:, 0])
        with pytest.raises(ValueError, match="strings"):
            estimator.fit(X, Y[:, 0]).predict(X.astype(str))


def test_truths_and_whole_numbers_are_numbers() -> None:
    for rows in (X > 0, (10 * X).astype(np.int64), X.astype(np.float16)):
        found = RangeFormerRegressor(KERNEL, optimizer=None).fit(rows, Y[:, 0]).predict(rows)
        same = RangeFormerRegressor(KERNEL, optimizer=None).fit(rows.astype(float), Y[:, 0]).predict(rows.astype(float))
        np.testing.assert_array_equal(found, same)
    with pytest.raises(ValueError, match="too large for dtype"):
        RangeFormerRegressor(KERNEL, dtype="float32").fit(1e300 * X, Y[:, 0])


@both_paths
def test_targets_that_overflow_are_said_to() -> None:
    with pytest.raises(ValueError, match="too large to be normalised"):
        RangeFormerRegressor(KERNEL, normalize_y=True).fit(X, 1e200 * Y[:, 0])
    with pytest.raises(np.linalg.LinAlgError, match="not finite"):
        RangeFormerRegressor(KERNEL).fit(X, 1e200 * Y[:, 0])


@both_paths
def test_what_is_changed_after_a_fit_changes_no_prediction() -> None:
    rows, targets, alpha, kernel = X.copy(), Y[:, 0].copy(), np.full(N, 1e-3), copy.deepcopy(KERNEL)
    estimator, other = (RangeFormerRegressor(kernel, alpha=alpha).fit(rows, targets) for _ in range(2))
    before = other.predict(NEW, return_std=True)
    for array in (rows, targets, alpha):
        array[:] = 9.0
    kernel.set_params(k2__noise_level=9.0)
    for mine, its in zip(estimator.predict(NEW, return_std=True), before, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("optimizer", ["fit_mll", None])
def test_one_gpytorch_kernel_serves_several_fits(optimizer: str | None) -> None:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    given = copy.deepcopy(kernel.state_dict())
    first = RangeFormerRegressor(kernel, optimizer=optimizer).fit(X, Y[:, 0])
    before = first.predict(NEW, return_std=True)
    RangeFormerRegressor(kernel, optimizer=optimizer).fit(5 * X, -7 * Y[:, 1])
    for mine, its in zip(first.predict(NEW, return_std=True), before, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert all(torch.equal(kernel.state_dict()[name], value) for name, value in given.items())
    assert kernel.raw_outputscale.dtype == torch.float32


def test_a_gpytorch_kernel_for_other_columns_is_named() -> None:
    for kernel in (gpytorch.kernels.RBFKernel(ard_num_dims=3), gpytorch.kernels.RBFKernel(active_dims=(5,))):
        for optimizer in ("fit_mll", None):
            with pytest.raises(KernelError, match="X of 2 columns"):
                RangeFormerRegressor(kernel, optimizer=optimizer).fit(X, Y[:, 0])


@pytest.mark.parametrize("kernel", [RBF(0.5), gpytorch.kernels.RBFKernel()], ids=["scikit-learn", "GPyTorch"])
@pytest.mark.parametrize("optimizer", ["fit_mll", None])
def test_after_a_fit_that_fails_there_are_no_predictions_of_the_prior(kernel: Any, optimizer: str | None) -> None:
    estimator = RangeFormerRegressor(kernel, alpha=0.0, optimizer=optimizer)
    assert not estimator.predict(NEW).any()
    with pytest.raises(ValueError, match="alpha"):
        estimator.set_params(alpha=np.ones(3)).fit(X, Y[:, 0])
    for failed in (estimator, copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        with pytest.raises(NotFittedError, match="failed"):
            failed.predict(NEW)
        afresh: Any = clone(failed)
        assert not afresh.predict(NEW).any()
    assert estimator.set_params(alpha=0.1).fit(X, Y[:, 0]).predict(NEW).any()
