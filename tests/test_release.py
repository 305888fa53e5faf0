"""A step leaves nothing behind: n x n tensors are freed by reference counts, not whenever the collector comes round."""

from __future__ import annotations

import gc
import warnings

import gpytorch
import pytest
import torch

from gp_rangeformer import last_report, settings
from gp_rangeformer.lab import datasets, models

N = 300


def square_matrices() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(type(thing) is torch.Tensor and thing.numel() >= N * N for thing in gc.get_objects())


@pytest.mark.parametrize(("min_size", "solver"), [(1, "rangeformer"), (10**6, "exact")])
def test_no_reference_cycle_keeps_the_matrices_of_a_step(min_size, solver) -> None:
    data = datasets.load("robot_arm", n=N)
    model, likelihood = models.build_model(data, "matern32")
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)

    def step() -> None:
        with settings.rangeformer(), settings.min_size(min_size):
            loss = -mll(model(data.train_x), data.train_y)  # type: ignore[operator]
            loss.backward()

    step()
    gc.collect()
    before = square_matrices()
    gc.disable()
    try:
        for _ in range(3):
            step()
        after = square_matrices()
    finally:
        gc.enable()
    report = last_report()
    assert report.solver == solver
    assert after == before
