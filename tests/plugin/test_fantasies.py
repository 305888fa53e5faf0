"""Fantasy models: conditioned on new observations, with the same predictions as without the flag."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gpytorch
import pytest
import torch

from gp_rangeformer import clear_memory, settings
from gp_rangeformer.plugin import fitted, predictions
from gp_rangeformer.report import ReportCollection
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import Problem, build, exact_path, rangeformer_path, relative

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

PATHS = {"exact": exact_path, "rangeformer": rangeformer_path}
paths = pytest.mark.parametrize("path", PATHS)
love = pytest.mark.parametrize("fast_pred_var", [False, True], ids=["solve", "love"])


def fantasise(problem: Problem, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
    problem.predict()
    fantasy = problem.model.get_fantasy_model(inputs, targets)
    prediction = fantasy(problem.test_x + 0.05)
    return fantasy, prediction.mean, prediction.covariance_matrix


def new_data(problem: Problem, batch: tuple[int, ...] = (), m: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.rand(*batch, m, 3, generator=generator, dtype=problem.x.dtype)
    return inputs, torch.randn(*batch, m, generator=generator, dtype=problem.x.dtype)


@paths
@love
@pytest.mark.parametrize("no_grad", [True, False], ids=["no_grad", "grad"])
@pytest.mark.parametrize("kernel", ["matern32", "sum"])
def test_fantasies_predict_what_the_host_predicts(kernel: str, no_grad: bool, fast_pred_var: bool, path: str) -> None:
    problem = build(kernel, n=200)
    inputs, targets = new_data(problem)
    with gpytorch.settings.fast_pred_var(fast_pred_var), torch.set_grad_enabled(not no_grad):
        _, mean, covariance = fantasise(problem, inputs, targets)
        with PATHS[path]() as reports:
            _, found_mean, found_covariance = fantasise(problem, inputs, targets)
    assert path in {report.solver for report in reports}
    assert relative(found_mean, mean) < 1e-5
    assert relative(found_covariance, covariance) < 1e-5


@paths
@pytest.mark.parametrize("shape", ["fantasy_batch", "shared_inputs", "model_batch"])
def test_batches_of_fantasies(shape: str, path: str) -> None:
    problem = build(n=200, batch=(2,) if shape == "model_batch" else ())
    inputs, targets = new_data(problem, (3,) if shape == "fantasy_batch" else (2,) if shape == "model_batch" else ())
    if shape == "shared_inputs":
        targets = torch.stack([targets, -targets, 2 * targets])
    with torch.no_grad(), gpytorch.settings.fast_pred_var():
        _, mean, covariance = fantasise(problem, inputs, targets)
        with PATHS[path]() as reports:
            _, found_mean, found_covariance = fantasise(problem, inputs, targets)
    assert path in {report.solver for report in reports}
    assert found_mean.shape == mean.shape
    assert relative(found_mean, mean) < 1e-5
    assert relative(found_covariance, covariance) < 1e-5


@love
def test_fantasies_of_fantasies(fast_pred_var: bool) -> None:
    problem = build(n=200)
    first, second = new_data(problem), new_data(problem, m=2)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        fantasy, _, _ = fantasise(problem, *first)
        again = fantasy.get_fantasy_model(0.5 * second[0], second[1])
        prediction = again(problem.test_x)
        return prediction.mean, prediction.variance

    with torch.no_grad(), gpytorch.settings.fast_pred_var(fast_pred_var):
        expected = run()
        with rangeformer_path():
            found = run()
    assert relative(found[0], expected[0]) < 1e-5
    assert relative(found[1], expected[1]) < 1e-4


def test_a_low_rank_variance_cache_does_not_reach_the_fantasy() -> None:
    """The cache may be low rank; the fantasy's own root must be the exact triangular one."""
    problem = build("rbf", n=300)
    problem.likelihood.noise = 0.2
    inputs, targets = new_data(problem)
    with torch.no_grad(), gpytorch.settings.fast_pred_var():
        _, mean, covariance = fantasise(problem, inputs, targets)
        with rangeformer_path(tolerance=0.01, rank=100) as reports:
            _, found_mean, found_covariance = fantasise(problem, inputs, targets)
    roots = [(r.solver, r.reason) for r in reports if r.operation == "root_inv_decomposition"]
    assert roots[0] == ("rangeformer", Reason.CONVERGED)
    assert ("exact", Reason.EXACT_ROOT) in roots
    assert relative(found_mean, mean) < 0.01
    assert relative(found_covariance, covariance) < 0.01


@contextlib.contextmanager
def served() -> Iterator[ReportCollection]:
    with torch.no_grad(), gpytorch.settings.max_eager_kernel_size(0), exact_path() as reports:
        yield reports


@pytest.mark.parametrize("likelihood", ["gaussian", "heteroscedastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_rows_are_appended_to_the_factor_of_before(dtype: torch.dtype, likelihood: str) -> None:
    problem = build("matern32", likelihood, n=200, dtype=dtype)
    noise = {"noise": torch.full((4,), 0.03, dtype=dtype)} if likelihood == "heteroscedastic" else {}

    def run() -> list[torch.Tensor]:
        model: Any = problem.model
        problem.predict().variance  # noqa: B018
        found = []
        for shift in range(3):
            inputs, targets = new_data(problem)
            model = model.get_fantasy_model(inputs + 0.1 * shift, targets, **noise)
            prediction = model(problem.test_x)
            found += [prediction.mean, prediction.variance]
        return found

    with torch.no_grad(), gpytorch.settings.max_eager_kernel_size(0):
        expected = run()
    with served() as reports:
        found = run()
    solves = [report.reason for report in reports if report.operation == "solve"]
    assert solves[1:] == [Reason.EXACT_APPENDED] * 3
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < (1e-4 if dtype == torch.float32 else 1e-8)


def test_a_factor_of_other_noise_is_not_appended_to() -> None:
    problem = build("matern32", n=200)
    inputs, targets = new_data(problem)
    with served() as reports:
        problem.predict()
        fantasy: Any = problem.model.get_fantasy_model(inputs, targets)
        fantasy.prediction_strategy.likelihood.noise = fantasy.likelihood.noise = 0.3
        found = fantasy(problem.test_x)
        found = found.mean, found.variance
    solves = [report.reason for report in reports if report.operation == "solve"]
    assert solves == [Reason.EXACT_SMALL] * 2
    with torch.no_grad():
        expected = Problem(fantasy, *data_of(fantasy), problem.test_x).predict()
    assert relative(found[0], expected.mean) < 1e-8
    assert relative(found[1], expected.variance) < 1e-8


def data_of(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.train_inputs[0], model.train_targets


def fantasy_of(problem: Problem, **options: Any) -> Any:
    problem.predict().variance  # noqa: B018
    return problem.model.get_fantasy_model(*new_data(problem), **options)


def test_a_fantasy_is_of_the_parameters_that_there_were() -> None:
    """Nothing is computed when it is made, but its kernel is copied then."""
    problem = build("matern32", n=200)
    with served():
        fantasy = fantasy_of(problem)
        expected = fantasy_of(problem)(problem.test_x)
        expected = expected.mean, expected.variance
        problem.model.covar_module.base_kernel.lengthscale = 0.1
        problem.model.mean_module.constant.data += 1.0
        found = fantasy(problem.test_x)
        assert torch.equal(found.mean, expected[0])
        assert torch.equal(found.variance, expected[1])


def test_deterministic_fantasies_do_not_depend_on_what_is_kept() -> None:
    found = []
    for forget in (False, True):
        problem = build("matern32", n=200)
        with served() as reports, settings.deterministic():
            fantasy = fantasy_of(problem)
            if forget:
                clear_memory()
            prediction = fantasy(problem.test_x)
            found.append((prediction.mean, prediction.variance))
        assert Reason.EXACT_APPENDED not in {report.reason for report in reports}
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_waits_for_a_prediction_counts_and_is_bounded() -> None:
    waiting = []
    with served():
        for seed in range(3):
            problem = build("matern32", n=200, seed=seed)
            waiting.append(fantasy_of(problem))
            del problem
            gc.collect()
        whole = fitted.fitted_bytes()
        assert whole > 3 * 200**2 * 8
        with settings.memory_limit(whole // 2):
            problem = build("matern32", n=200, seed=5)
            problem.predict()
            assert fitted.fitted_bytes() <= whole // 2
        assert all(bool(fantasy(problem.test_x).mean.isfinite().all()) for fantasy in waiting)


def test_many_rows_are_not_appended_to_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "_FACTORISED", 0)
    for m, appended in ((50, True), (51, False)):
        problem = build("matern32", n=200)
        with served() as reports:
            problem.predict()
            _ = problem.model.get_fantasy_model(*new_data(problem, m=m))(problem.test_x).mean
        assert (Reason.EXACT_APPENDED in {report.reason for report in reports}) == appended


@pytest.mark.parametrize("wrong", ["x", "y", "noise"])
def test_what_only_the_host_knows_how_to_take_is_taken_by_it(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN among new points is an error at once; noise for a likelihood that has its own is a matter of GPyTorch's."""
    problem = build("matern32", n=200)
    asked = []
    monkeypatch.setattr(predictions, "original_fantasy_strategy", lambda *arguments, **options: asked.append(options))
    with served():
        problem.predict()
        inputs, targets = new_data(problem)
        options = {"noise": torch.full((4,), 0.1, dtype=torch.float64)} if wrong == "noise" else {}
        (inputs if wrong == "x" else targets)[0] = torch.nan if wrong != "noise" else 0.0
        problem.model.get_fantasy_model(inputs, targets, **options)
    assert asked == [options]


class Strategy:
    """For one of GPyTorch's."""


def test_threads_may_count_what_is_kept_while_others_keep_more() -> None:
    problem = build("matern32", n=120)
    with served():
        problem.predict()
    known = fitted._fitted[problem.model.prediction_strategy]
    errors: list[BaseException] = []
    kept = [Strategy() for _ in range(300)]

    def keep() -> None:
        for strategy in kept:
            fitted.continues(strategy, replace(known))

    def count() -> None:
        try:
            for _ in range(len(kept)):
                fitted.fitted_bytes()
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count), threading.Thread(target=keep)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors
