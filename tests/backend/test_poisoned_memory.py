"""A memory that is stale, foreign or garbage costs time and changes no answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gp_rangeformer.ranges.landmarks import Landmarks
from gp_rangeformer.ranges.memory import Memory
from tests.backend.market import build, rangeformer_path, relative
from tests.backend.test_model_memory import iterations
from tests.backend.test_model_memory import memory as memory_of


def _poison_nan(memory: Memory) -> None:
    memory.solutions = tuple(torch.full_like(old, torch.nan) for old in memory.solutions)


def _poison_infinity(memory: Memory) -> None:
    memory.solutions = tuple(old / 0 for old in memory.solutions)


def _poison_noise(memory: Memory) -> None:
    memory.solutions = tuple(1e3 * torch.randn_like(old) for old in memory.solutions)


def _poison_huge(memory: Memory) -> None:
    memory.solutions = tuple(1e200 * old for old in memory.solutions)


def _poison_other_model(memory: Memory) -> None:
    other = build("periodic", seed=5)
    iterations(other)
    memory.solutions = memory_of(other).solutions * 2


def _poison_landmarks(memory: Memory) -> None:
    memory.landmarks = Landmarks(torch.tensor([3, 3, 3, 10**6]))


def _poison_few_landmarks(memory: Memory) -> None:
    memory.landmarks = Landmarks(torch.tensor([0]))


def _poison_counters(memory: Memory) -> None:
    memory.baseline_iterations = -1.0
    memory.failures = 10**6


POISONS = [
    _poison_nan,
    _poison_infinity,
    _poison_noise,
    _poison_huge,
    _poison_other_model,
    _poison_landmarks,
    _poison_few_landmarks,
    _poison_counters,
]


@pytest.mark.parametrize("predictor", ["extrapolate", "galerkin", "previous"])
@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_memory_changes_no_answer(poison: Callable[[Memory], None], predictor: str) -> None:
    problem = build("matern12")
    with rangeformer_path(predictor=predictor):
        problem.loss_and_gradient()
        expected = problem.loss_and_gradient()
        mean = problem.predict().mean
        poison(memory_of(problem))
    with rangeformer_path(predictor=predictor) as reports:
        found = problem.loss_and_gradient()
        again = problem.loss_and_gradient()
        poisoned_mean = problem.predict().mean
    assert reports[0].residual <= 1e-7
    # The log determinant is an average over fixed probes; other landmarks shift it within its interval.
    slack = 0.05 if "landmarks" in poison.__name__ else 1e-8
    for loss, gradient in (found, again):
        assert loss == pytest.approx(expected[0], abs=slack)
        assert relative(gradient, expected[1]) < 1e-5
    assert relative(poisoned_mean, mean) < 1e-5
