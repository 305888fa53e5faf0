"""Where points are few the estimator computes as scikit-learn does, at no more than its cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    Matern,
    Product,
    RationalQuadratic,
    Sum,
    WhiteKernel,
)

from gp_rangeformer import Exact, collect_reports, settings
from gp_rangeformer.sklearn import RangeFormerRegressor, bounded, training
from gp_rangeformer.sklearn.bounded import METHOD
from gp_rangeformer.sklearn.few_points import FewPoints
from gp_rangeformer.sklearn.optimum import TOLERANCE
from gp_rangeformer.sklearn.supported import variances_of

Gpr: Any = GaussianProcessRegressor
KERNELS: dict[str, Any] = {
    "default": None,
    "ard": ConstantKernel() * RBF([1.0, 1.0]) + WhiteKernel(),  # type: ignore[arg-type]
    "matern": ConstantKernel() * Matern([1.0, 1.0], nu=1.5) + WhiteKernel(),  # type: ignore[arg-type]
    "rational quadratic": ConstantKernel() * RationalQuadratic() + WhiteKernel(),
    "two scales": ConstantKernel() * RBF() + ConstantKernel() * Matern(nu=2.5) + WhiteKernel(),
    "narrow bounds": ConstantKernel(1.0, (0.5, 2.0)) * RBF(1.0, (0.5, 1.2)) + WhiteKernel(1.0, (1e-3, 10.0)),
}


def problem(n: int, columns: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.uniform(-2, 2, (n, columns))
    return x, np.sin(x.sum(1)) + 0.3 * np.cos(2 * x[:, 0]) + 0.1 * random.normal(size=n)


def calls_of(estimator: Any, x: np.ndarray, y: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a fit evaluates sums and products of kernels."""
    count = 0
    with monkeypatch.context() as patched:
        for kind in (Sum, Product):

            def counted(self: Any, *arguments: Any, original: Any = kind.__call__, **options: Any) -> Any:
                nonlocal count
                count += 1
                return original(self, *arguments, **options)

            patched.setattr(kind, "__call__", counted)
        estimator.fit(x, y)
    return count


@pytest.mark.parametrize("n", [20, 50, 80])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # on bounds
def test_a_fit_ends_where_that_of_scikit_learn_does_after_no_more_evaluations(
    name: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem(n)
    theirs, ours = Gpr(KERNELS[name]), RangeFormerRegressor(KERNELS[name])
    assert 0 < calls_of(ours, x, y, monkeypatch) <= calls_of(theirs, x, y, monkeypatch)
    assert ours.log_marginal_likelihood_value_ >= theirs.log_marginal_likelihood_value_ - n * TOLERANCE
    result = ours.fit_result_
    assert result is not None
    assert (result.method, result.settled, result.error) == (METHOD, True, 0.0)
    assert result.value == pytest.approx(ours.log_marginal_likelihood_value_ / n, rel=1e-12)
    assert result.evaluations == {n: len(result.history)}
    assert max(record.value for record in result.history) == result.value
    assert str(n) in result.summary()


def test_predictions_are_of_the_best_point_also_where_the_search_looked_at_another_one_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def looking_back(objective: Any, start: Any, **options: Any) -> Any:
        ended = minimize(objective, start, **options)
        objective(start)
        return ended

    monkeypatch.setattr(bounded, "minimize", looking_back)
    x, y = problem(30)
    estimator = RangeFormerRegressor(KERNELS["ard"]).fit(x, y)
    again = RangeFormerRegressor(estimator.kernel_, optimizer=None).fit(x, y)
    for mine, its in zip(estimator.predict(x, return_std=True), again.predict(x, return_std=True), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-6)


def test_where_rounding_is_as_large_as_the_noise_the_other_fit_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(50)
    for alpha, resolved in ((1e-10, True), (1e-14, False)):
        points = FewPoints(training.Training(x, y, np.full(50, alpha)), ConstantKernel(100.0) * RBF())
        # eps times the largest variance times the square root of n: 1.6e-13.
        assert points.resolved() is resolved
    assert FewPoints(training.Training(x, y, np.zeros(50)), 100.0 * RBF() + WhiteKernel(1e-10)).resolved()
    monkeypatch.setattr(FewPoints, "resolved", lambda self: False)
    result = RangeFormerRegressor(KERNELS["ard"]).fit(x, y).fit_result_
    assert result is not None
    assert (result.method, result.converged, result.notes) == ("average information", True, ())


@pytest.mark.parametrize("outputs", [1, 2])
def test_what_a_step_may_still_gain_is_what_average_information_says(outputs: int) -> None:
    x, y = problem(40)
    y = np.stack([y, np.cos(x[:, 0])], axis=1)[:, :outputs]
    kernel: Any = 1.3 * RBF(0.9) + WhiteKernel(0.05)
    points = FewPoints(training.Training(x, y, np.full(40, 0.01)), kernel)
    found = points.evaluate()
    inverse = np.linalg.inv(kernel(x) + 0.01 * np.eye(40))
    slopes = kernel(x, eval_gradient=True)[1]
    solved = inverse @ y
    pushed = np.einsum("ijk,jq->kiq", slopes, solved)
    information = 0.5 * np.einsum("kiq,ij,ljq->kl", pushed, inverse, pushed)
    model = points.quadratic_model(found, np.ones(3, dtype=bool))
    np.testing.assert_allclose(model.curvature.numpy(), information / 40, rtol=1e-9)
    np.testing.assert_allclose(model.gradient.numpy(), found.gradient / 40, rtol=1e-12)


def test_the_plug_in_is_not_asked_where_points_are_few_and_no_solver_was_named() -> None:
    x, y = problem(50)
    kernel = KERNELS["ard"]
    with collect_reports() as reports:
        RangeFormerRegressor(kernel).fit(x, y).predict(x)
    assert len(reports) == 0
    asked: list[dict[str, Any]] = [{"solver": Exact()}, {"dtype": "float32"}]
    for options in asked:
        with collect_reports() as reports:
            RangeFormerRegressor(kernel, **options).fit(x, y)
        assert len(reports) > 0
    with settings.min_size(50), collect_reports() as reports:
        RangeFormerRegressor(kernel).fit(x, y)
    assert len(reports) > 0


@pytest.mark.parametrize(("n", "free", "few"), [(447, 1, True), (448, 1, False), (200, 5, True), (200, 6, False)])
def test_few_is_counted_in_numbers_that_derivatives_have(n: int, free: int, few: bool) -> None:
    assert training.Training(np.zeros((n, 1)), np.zeros(n), np.zeros(n)).few(free) is few


def test_where_l_bfgs_does_not_arrive_the_other_fit_goes_on() -> None:
    # Here it ends while the slope along the noise is still one nat for a factor of e.
    x, y = problem(8, seed=14)
    kernel = DotProduct() ** 2 + WhiteKernel()
    theirs, ours = Gpr(kernel).fit(x, y), RangeFormerRegressor(kernel).fit(x, y)
    assert ours.log_marginal_likelihood_value_ > theirs.log_marginal_likelihood_value_ + 1
    result = ours.fit_result_
    assert result is not None
    assert result.converged
    assert any(f"began where {METHOD} ended" in note for note in result.notes)


def test_the_parts_of_a_variance_are_those_of_the_kernel() -> None:
    x = problem(5)[0]
    more: list[Any] = [(1.5 * RBF(0.7) + WhiteKernel(0.3)) ** 2, 2.0 * (RBF() * WhiteKernel(0.3))]
    for kernel in (*KERNELS.values(), *more):
        if kernel is not None:
            found = variances_of(kernel)
            assert found.smooth == pytest.approx(kernel(x, x)[0, 0])
            assert found.white == pytest.approx(kernel(x)[0, 0] - kernel(x, x)[0, 0])
    assert variances_of(RBF()).white is None
    assert variances_of(DotProduct() + WhiteKernel(0.3)).smooth is None
