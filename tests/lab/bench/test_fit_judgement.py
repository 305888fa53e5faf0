"""Judging a fit: to a single evaluation, by few exact values."""

from __future__ import annotations

import math

import pytest
import torch

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.fit_judgement import Judged, Place, by, judge
from gp_rangeformer.lab.compare.audit import ExactEvaluator, snapshot
from gp_rangeformer.lab.models import build_model

GAPS = (0.1, 0.03, 0.01, 0.003, 0.001)


def of(values: list[float]) -> tuple[Judged, list[int]]:
    """A fit with these values, and the evaluations that are asked for."""
    places = [Place(float(index), {"at": torch.tensor(index)}) for index in range(len(values))]
    asked: list[int] = []

    def exact(parameters) -> float:
        asked.append(int(parameters["at"]))
        return values[asked[-1]]

    return Judged(places, exact), asked


@pytest.mark.parametrize("decay", [3.0, 20.0, 90.0])
@pytest.mark.parametrize("count", [60, 201, 501])
def test_every_arrival_is_found_to_a_single_evaluation(count: int, decay: float) -> None:
    values = [-math.exp(-step / decay) for step in range(count)]
    fit, asked = of(values)
    optimum = judge([fit], GAPS, 0.0)
    assert optimum == 0.0
    assert len(asked) == len(set(asked)) <= 40
    for gap in GAPS:
        first = next((index for index, value in enumerate(values) if value >= -gap), None)
        known = [index for index, value in fit.values.items() if value >= -gap]
        assert min(known, default=None) == first
        assert not first or first - 1 in fit.values
    assert count - 1 in fit.values


def test_of_a_short_fit_every_evaluation_is_judged() -> None:
    fit, asked = of([-3.0, -1.0, -2.0, -0.5, -0.6])
    assert judge([fit], GAPS, -0.55) == -0.5
    assert sorted(asked) == [0, 1, 2, 3, 4]


def test_a_value_above_the_reference_is_the_optimum_for_all() -> None:
    one, _ = of([-math.exp(-step / 30) for step in range(400)])
    other, _ = of([0.02])
    assert judge([one, other], GAPS, 0.0) == 0.02
    sought = 0.02 - 0.1
    first = next(step for step in range(400) if -math.exp(-step / 30) >= sought)
    assert min(index for index, value in one.values.items() if value >= sought) == first


def test_the_value_alone_is_that_of_value_and_gradient() -> None:
    dataset = datasets.load("robot_arm", n=60, n_test=1, seed=0).to(torch.float64)
    evaluator = ExactEvaluator(dataset, "matern32")
    parameters = snapshot(build_model(dataset, "matern32")[0])
    assert by(evaluator)(parameters) == pytest.approx(evaluator(parameters).value, abs=1e-12)
