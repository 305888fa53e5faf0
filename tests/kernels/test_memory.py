"""K is the only n x n tensor: peaks of what the allocators of torch and NumPy hand out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gp_rangeformer.kernels.expression import Product, Scale, Stationary, Sum
from gp_rangeformer.kernels.fused import FusedKernel

SIZE = 6000
MATRIX = SIZE**2 * 4

MATERN = Scale(Stationary("matern32"))
EXPRESSION = Sum((MATERN, Scale(Product((Stationary("rbf"), Stationary("periodic"))))))
SHAPES = (), (1, 4), (), (1, 4), (1, 1), (1, 1)


def build() -> tuple[FusedKernel, tuple[torch.Tensor, ...]]:
    parameters = tuple(torch.ones(shape, requires_grad=True) for shape in SHAPES)
    return FusedKernel(EXPRESSION, torch.randn(SIZE, 4), parameters), parameters


def peak(action: Callable[[], object]) -> float:
    """The most memory held at once by ``action`` beyond what was held before, in units of K: the sum of the peaks of
    both allocators, which may be more than the peak of their sum."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        tracemalloc.start()
        action()
        _, traced = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    recorded: Any = profiled.profiler
    changes = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return (highest + traced) / MATRIX


def test_evaluation_holds_the_matrix_and_tiles() -> None:
    fused, _ = build()
    assert 1 <= peak(fused.dense) < 1.1


def test_thin_contraction_holds_no_matrix() -> None:
    fused, _ = build()
    left, right = torch.randn(2, SIZE, 33)
    assert 0 < peak(lambda: fused.contract(left, right, torch.ones(SIZE))) < 0.1


def test_the_backward_pass_of_the_dense_form_holds_no_matrix_beside_its_weight() -> None:
    fused, parameters = build()
    kernel, weight = fused.dense(), torch.randn(SIZE, SIZE)
    assert 0 < peak(lambda: torch.autograd.grad(kernel, parameters, weight)) < 0.1


@pytest.mark.parametrize("matrices", [1, 2])
def test_a_second_matrix_would_have_been_seen(matrices) -> None:
    assert peak(lambda: [torch.empty(SIZE, SIZE) for _ in range(matrices)]) == pytest.approx(matrices, abs=0.01)
    in_numpy = peak(lambda: [np.empty((SIZE, SIZE), np.float32) for _ in range(matrices)])
    assert in_numpy == pytest.approx(matrices, abs=0.01)
