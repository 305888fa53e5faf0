"""Steps whose values scatter by more than they promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gp_rangeformer.fit.ascent import ascend
from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.objective import Objective
from gp_rangeformer.fit.result import AS_NEAR_AS_ROUNDING_ALLOWS
from gp_rangeformer.fit.scatter import Scatter
from gp_rangeformer.fit.trust_region import QuadraticModel, Step

LENGTHS = (1.0, 0.3, 0.09, 0.027, 0.008)


def one_number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def hidden(
    value: Callable[[float], float], slope: Callable[[float], float], promised: Callable[[float], float]
) -> bool:
    """Of steps from 0, each a third of the one before."""
    scatter, start = Scatter(), Evaluated(one_number(0.0), value(0.0), 0.0, one_number(slope(0.0)), None)
    for length in LENGTHS:
        end = Evaluated(one_number(length), value(length), 0.0, one_number(slope(length)), None)
        scatter.see(start, end, Step(one_number(length), promised(length), length))
    return scatter.hides(1e-4)


@pytest.mark.parametrize("bend", [1.0, 1e2, 1e4])
def test_a_smooth_function_hides_nothing_however_wrong_the_model_is(bend: float) -> None:
    assert not hidden(lambda s: 1e-3 * s - bend * s**3, lambda s: 1e-3 - 3 * bend * s**2, lambda s: 1e-3 * s)


def test_values_that_scatter_by_more_than_is_promised_tell_nothing() -> None:
    noise = iter((1e-3, -2e-3, 1.5e-3, -1e-3, 2e-3, -1.5e-3))
    assert hidden(lambda s: -(s**2) * 1e-5 + next(noise), lambda s: -2e-5 * s, lambda s: 1e-5 * s)


def test_values_that_scatter_by_less_do_not_end_a_fit() -> None:
    noise = iter((1e-6, -2e-6, 1.5e-6, -1e-6, 2e-6, -1.5e-6))
    assert not hidden(lambda s: -(s**2) * 1e-3 + next(noise), lambda s: -2e-3 * s, lambda s: 1e-3)


def test_steps_as_long_as_each_other_say_nothing_of_rounding() -> None:
    scatter, start = Scatter(), Evaluated(one_number(0.0), 0.0, 0.0, one_number(0.0), None)
    for _ in LENGTHS:
        scatter.see(start, Evaluated(one_number(1.0), 1.0, 0.0, one_number(0.0), None), Step(one_number(1.0), 0.1, 1.0))
    assert not scatter.hides(1e-4)


class Scattering(Objective):
    """-|phi - 1|^2 / 2, whose values are off by up to ``size`` and whose average information is far too small."""

    def __init__(self, size: float) -> None:
        self.size, self.evaluations = size, 0

    def __call__(self, phi: Tensor) -> Evaluated:
        self.evaluations += 1
        off = self.size * math.sin(1e9 * float(phi.sum()))
        return Evaluated(phi, -0.5 * float((phi - 1).square().sum()) + off, 0.0, 1 - phi, None)

    def quadratic_model(self, point: Evaluated, near: float = 0.0) -> QuadraticModel:
        return QuadraticModel(point.gradient, 1e-3 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-3, 1e-2, 3e-2])
def test_an_ascent_ends_where_values_scatter(size: float) -> None:
    objective = Scattering(size)
    found = ascend(objective, objective(torch.zeros(2, dtype=torch.float64)), tolerance=1e-6, max_evaluations=None)
    assert found.reason == AS_NEAR_AS_ROUNDING_ALLOWS
    assert 0.5 * float((found.best.phi - 1).square().sum()) < 2 * size
    assert objective.evaluations < 20


def test_an_ascent_of_exact_values_goes_on_by_secants_to_the_top() -> None:
    objective = Scattering(0.0)
    found = ascend(objective, objective(torch.zeros(2, dtype=torch.float64)), tolerance=1e-6, max_evaluations=None)
    assert found.reason == "converged"
    assert 0.5 * float((found.best.phi - 1).square().sum()) < 1e-6
