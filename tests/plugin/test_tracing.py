"""TorchScript: what torch.jit.trace makes of a model under the flag predicts what the model does."""

from __future__ import annotations

import warnings
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.plugin.recognition import recognise
from tests.plugin.market import Problem, build
from tests.plugin.posteriors import by_host, further_points

pytestmark = pytest.mark.usefixtures("predicts_small_systems")


class MeanAndVariance(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.model(x)
        return prediction.mean, prediction.variance


def trace(called: Any, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that traces are deprecated; the tracer's, about decisions of the host
        return torch.jit.trace(called, x, check_trace=False)


def traced(problem: Problem, warmed_up: bool) -> Any:
    """As GPyTorch's tutorial does; ``warmed_up``: with the prediction inside ``trace_mode`` that makes the caches."""
    x = further_points()
    with gpytorch.settings.trace_mode():
        if warmed_up:
            problem.model(x)
        return trace(MeanAndVariance(problem.model), x[:20])


@pytest.fixture
def _as_in_the_tutorial():
    with (
        torch.no_grad(),
        gpytorch.settings.fast_pred_var(),
        gpytorch.settings.max_cholesky_size(10**5),
        settings.rangeformer(),
    ):
        yield


def check(script: Any, problem: Problem) -> None:
    x = further_points(30) + 0.1
    mean, variance = script(x)
    expected = by_host(problem, x)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance, expected.variance, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("_as_in_the_tutorial")
@pytest.mark.parametrize("storage", ["dense", "tiles"])
@pytest.mark.parametrize("warmed_up", [True, False], ids=["warmed_up", "served_before"])
def test_a_traced_model_predicts_as_the_model(storage: Any, warmed_up: bool) -> None:
    problem = build(n=700)
    problem.model.eval()
    with settings.kernel_storage(storage):
        if not warmed_up:
            _ = problem.model(further_points()).variance
        script = traced(problem, warmed_up)
    check(script, problem)


@pytest.mark.usefixtures("_as_in_the_tutorial")
def test_a_model_that_changed_after_a_prediction_is_traced_as_it_is() -> None:
    problem = build(n=700)
    problem.model.eval()
    _ = problem.model(further_points()).variance
    for parameter in problem.model.parameters():
        parameter.data += 0.3
    check(traced(problem, warmed_up=False), problem)


def test_a_trace_without_a_setting_is_known() -> None:
    kernel, found = gpytorch.kernels.RBFKernel().double(), []

    def ask(x: Tensor) -> Tensor:
        found.append(recognise(kernel, x))
        return 2 * x

    trace(ask, torch.ones(5, 3, dtype=torch.float64))
    assert found == [None]
