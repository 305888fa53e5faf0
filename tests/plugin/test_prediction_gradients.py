"""Gradients of predictions through iterated solves: those of a factorisation, whatever the scale of the loss."""

from __future__ import annotations

from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.predict import sample_paths
from tests.plugin.market import build, relative

N, POINTS = 600, 10
# What is asked of a solution that is differentiated is 1e-4 of an observation's deviation or variance, of which a first
# order shows the root: 1e-2.
ALLOWED = 1e-2


def _loss(model: Any, x: Tensor, what: str) -> Tensor:
    prediction = model(x)
    if what == "mean":
        return (prediction.mean - 1).square().mean()
    weight = torch.randn(POINTS, POINTS, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return (prediction.covariance_matrix * (weight + weight.mT)).sum()


def _gradients(what: str, flag: bool, scale: float = 1.0) -> tuple[list[Tensor], list[str]]:
    """For x and all parameters, over ``scale``; and who answered."""
    problem = build("matern52", n=N)
    model = problem.model.eval()
    model.likelihood.noise = 1e-2
    x = (problem.x[:POINTS] + 1e-3).requires_grad_()
    wanted = [x, *model.covar_module.parameters(), *model.likelihood.parameters()]
    with (
        settings.rangeformer(flag),
        settings.min_size(50),
        gpytorch.settings.max_eager_kernel_size(0),
        gpytorch.settings.max_cholesky_size(10_000),
        gpytorch.settings.detach_test_caches(False),
        collect_reports() as reports,
    ):
        found = torch.autograd.grad(scale * _loss(model, x, what), wanted)
    return [gradient / scale for gradient in found], [report.solver for report in reports]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("what", ["mean", "covariance"])
def test_gradients_are_those_of_a_factorisation_whatever_the_scale_of_the_loss(what: str, scale: float) -> None:
    truth, _ = _gradients(what, flag=False)
    found, solvers = _gradients(what, flag=True, scale=scale)
    assert solvers[-1] == "rangeformer"  # the backward pass
    for own, exact in zip(found, truth, strict=True):
        assert relative(own, exact) < ALLOWED


def test_a_solution_that_is_differentiated_is_factorised_for_up_to_4000_points() -> None:
    problem = build("matern32", n=2600, dtype=torch.float32)
    model, x = problem.model.eval(), problem.x[:3] + 0.01
    with settings.rangeformer(), collect_reports() as reports:
        model(x.requires_grad_()).covariance_matrix.sum().backward()
    assert {report.solver for report in reports if report.operation == "solve"} == {"exact"}


def test_many_gradients_at_once_are_those_one_after_the_other() -> None:
    problem = build("matern52", n=700)
    model, x = problem.model.eval(), problem.test_x
    with settings.rangeformer():
        paths = sample_paths(model, 2)
        for function in (lambda z: model(z).mean, lambda z: paths(z).sum(0)):
            one_by_one = torch.autograd.functional.jacobian(function, x)
            at_once = torch.autograd.functional.jacobian(function, x, vectorize=True)
            torch.testing.assert_close(at_once, one_by_one)
