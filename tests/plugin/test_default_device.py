"""torch.set_default_device: models on the CPU get the same bits, whatever is made where no device is named."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from gp_rangeformer import Direct, Exact, clear_memory, fit, predict, settings
from gp_rangeformer.logdet.learned import load_head
from gp_rangeformer.rangeformer.pretrained import load_pretrained
from gp_rangeformer.regression import TableRegression
from gp_rangeformer.sklearn import RangeFormerRegressor
from tests.plugin.market import Problem, build, data, exact_path, rangeformer_path


@contextlib.contextmanager
def nothing_on_the_host() -> Iterator[None]:
    """Tensors that are made without a device hold no numbers."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def same_bits(found: Callable[[], list[Tensor]]) -> None:
    """``found`` makes its own model, inside :func:`on_the_cpu`."""
    results = []
    for mode in (nothing_on_the_host, contextlib.nullcontext):  # in this order: what is kept is made there
        clear_memory()
        torch.manual_seed(0)
        with mode():
            results.append(found())
    for there, usual in zip(*results, strict=True):
        assert torch.equal(there, usual)


def on_the_cpu(*arguments: Any, **options: Any) -> Problem:
    with torch.device("cpu"):
        return build(*arguments, **options)


def steps(problem: Problem, count: int = 3) -> list[Tensor]:
    found = []
    for _ in range(count):
        loss, gradient = problem.loss_and_gradient()
        found += [torch.tensor(loss, device="cpu"), gradient]
        with torch.no_grad():
            for parameter in problem.model.parameters():
                parameter -= 0.02 * parameter.grad
    return found


@contextlib.contextmanager
def direct() -> Iterator[None]:
    with settings.rangeformer(), settings.exact_size(1), settings.solver(Direct()):
        yield


PATHS = {
    "exact": exact_path,
    "rangeformer": lambda: rangeformer_path(tolerance=1e-3),
    "as_it_comes": settings.rangeformer,
    "direct": direct,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", ["ard", "sum", "spectral_mixture"])
@pytest.mark.parametrize("storage", ["dense", "tiles"])
def test_steps(path: str, dtype: torch.dtype, kernel: str, storage: Any) -> None:
    def found() -> list[Tensor]:
        problem = on_the_cpu(kernel, n=160, dtype=dtype)
        with PATHS[path](), settings.kernel_storage(storage):
            return steps(problem)

    same_bits(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_certified_steps_with_neighbours_and_predictions(dtype: torch.dtype) -> None:
    def found() -> list[Tensor]:
        problem = on_the_cpu("ard", n=1600, dtype=dtype)
        with settings.rangeformer(), settings.min_size(1000):
            results = steps(problem)
            with torch.no_grad(), gpytorch.settings.fast_pred_var():
                prediction = problem.predict()
                return [*results, prediction.mean, prediction.variance]

    same_bits(found)


def test_batches_and_a_line_search() -> None:
    def found() -> list[Tensor]:
        batch, searched = on_the_cpu("ard", n=110, batch=(3,)), on_the_cpu("matern32", n=110)
        optimiser = torch.optim.LBFGS(searched.model.parameters(), max_iter=3)
        with rangeformer_path():

            def closure() -> Tensor:
                optimiser.zero_grad()
                loss = searched.loss()
                loss.backward()
                return loss

            results = steps(batch)
            optimiser.step(closure)  # pyright: ignore[reportArgumentType]
            return [*results, *(parameter.detach() for parameter in searched.model.parameters())]

    same_bits(found)


@pytest.mark.usefixtures("predicts_small_systems")
@pytest.mark.parametrize("path", PATHS)
def test_predictions(path: str) -> None:
    def found() -> list[Tensor]:
        problem = on_the_cpu("ard", n=300)
        with PATHS[path](), torch.no_grad():
            prediction = problem.predict()
            return [prediction.mean, prediction.variance, prediction.covariance_matrix]

    same_bits(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_fit_and_what_follows_it(dtype: torch.dtype) -> None:
    def found() -> list[Tensor]:
        problem = on_the_cpu("ard", n=300, dtype=dtype)
        with settings.rangeformer(), settings.min_size(200):
            fit.fit_mll(gpytorch.mlls.ExactMarginalLogLikelihood(problem.likelihood, problem.model), max_evaluations=6)
            left_out = predict.leave_one_out(problem.model)
            paths = predict.sample_paths(problem.model, 3, seed=1)
            parameters = [parameter.detach() for parameter in problem.model.parameters()]
            return [*parameters, left_out.mean, left_out.variance, paths(problem.test_x)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same_bits(found)


@pytest.mark.parametrize("kernel", [None, "matern32", gpytorch.kernels.MaternKernel(1.5)])
def test_the_estimator_of_scikit_learn(kernel: Any) -> None:
    x, y, rows = (tensor.numpy() for tensor in data(120))

    def found() -> list[Tensor]:
        fitted = RangeFormerRegressor(kernel, alpha=1e-2).fit(x, y)
        return [torch.from_numpy(np.asarray(numbers)) for numbers in fitted.predict(rows, return_std=True)]

    same_bits(found)


@pytest.mark.parametrize("kernel", [None, gpytorch.kernels.RBFKernel()])
def test_the_estimator_with_a_solver_keeps_what_it_needs_on_the_host(kernel: Any) -> None:
    x, y, rows = (tensor.numpy() for tensor in data(120))

    def found() -> list[Tensor]:
        fitted = RangeFormerRegressor(kernel, alpha=1e-2, dtype="float32", solver=Exact()).fit(x, y)
        again = pickle.loads(pickle.dumps(fitted))
        return [torch.from_numpy(np.asarray(numbers)) for numbers in again.predict(rows, return_cov=True)]

    same_bits(found)


def test_a_table(tmp_path: Path) -> None:
    x, y, _ = data(60)
    frame = pd.DataFrame(x.numpy(), columns=["a", "b", "c"]).assign(y=y.numpy())

    def found() -> list[Tensor]:
        model = TableRegression.fit(frame, target="y", kernel="rbf,linear+matern32")
        model.save(tmp_path / "model")
        read = TableRegression.load(tmp_path / "model")
        tables = model.predict(frame), read.predict(frame), read.relevance(), read.training_frame()
        return [*(torch.from_numpy(table.to_numpy(copy=True)) for table in tables), read.leave_one_out().mean]

    same_bits(found)


@pytest.mark.parametrize("load", [load_head, load_pretrained])
def test_networks_are_loaded_onto_the_host(load: Callable[[], torch.nn.Module]) -> None:
    same_bits(lambda: list(load().state_dict().values()) + list(load().buffers()))
