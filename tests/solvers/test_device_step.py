"""A training step on a device that a CPU plays: the CPU's answers, and what the host decides after the fact."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.system.reason import Reason
from tests.device_cost import on_device, recognised
from tests.plugin.market import Problem, build
from tests.stand_in import StandIn

N = 600


def steps(problem: Problem, count: int = 4) -> list[tuple[float, torch.Tensor]]:
    """Values and gradients of a few steps that go the same way on every device."""
    found = []
    for _ in range(count):
        problem.model.zero_grad()
        loss = problem.loss()
        loss.backward()
        gradient = torch.cat([p.grad.reshape(-1).cpu() for p in problem.model.parameters()])
        found.append((loss.item(), gradient))
        with torch.no_grad():
            for parameter in problem.model.parameters():
                parameter -= 0.05 * parameter.grad.sign()
    return found


@pytest.mark.parametrize("kind", ["matern32", "rbf", "rational_quadratic", "ard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_on_the_device_answers_as_on_the_cpu(kind: str, dtype: torch.dtype) -> None:
    with settings.rangeformer(), settings.min_size(100), settings.solver(neighbours=0), collect_reports() as reports:
        here = steps(build(kind, n=N, dtype=dtype))
        with StandIn(), recognised():
            there = steps(on_device(build(kind, n=N, dtype=dtype)))
    for (value, gradient), (expected, expected_gradient) in zip(there, here, strict=True):
        assert value == pytest.approx(expected, abs=2e-3)
        # Where solves stop at a tolerance of 0.01 depends on rounding.
        assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 0.02
    everything = list(reports)
    mine, its = everything[:4], everything[4:]
    assert {report.solver for report in mine} == {report.solver for report in its} == {"rangeformer"}
    assert {report.reason for report in its} == {Reason.CONVERGED}
    for one, other in zip(mine, its, strict=True):
        assert one.mll_interval is not None
        assert one.mll is not None
        assert other.mll_interval is not None
        assert other.mll_interval.contains(one.mll)
        assert one.mll_interval.lower == pytest.approx(other.mll_interval.lower, rel=1e-2, abs=2)
        assert one.mll_interval.upper == pytest.approx(other.mll_interval.upper, rel=1e-2, abs=2)
