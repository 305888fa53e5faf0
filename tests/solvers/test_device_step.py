"""A training step on a device that a CPU plays: the CPU's answers, and what the host decides after the fact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.plugin import owners
from gp_rangeformer.recycling.memory import Memory
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


def trained_on_the_device(problem: Problem, count: int = 3) -> Problem:
    """After a few steps, so that the next one is started without a look."""
    there = on_device(problem)
    steps(there, count)
    return there


def the_memory() -> Memory:
    (memory,) = owners._store._memories.values()
    return memory


@pytest.fixture
def device() -> Iterator[StandIn]:
    with StandIn() as playing, recognised(), settings.rangeformer(), settings.min_size(100):
        yield playing


def test_targets_that_are_not_finite_are_named_after_the_fact(device: StandIn) -> None:
    there = trained_on_the_device(build(n=N, dtype=torch.float32))
    there.y[7] = float("nan")
    with pytest.raises(NanError, match="targets minus mean"):
        there.loss()


def test_a_kernel_with_a_negative_scale_goes_to_the_exact_path(device: StandIn) -> None:
    """K is negative definite: the preconditioner, which nobody has looked at, is not believed."""
    there = trained_on_the_device(build(n=N, dtype=torch.float32))
    there.model.covar_module.raw_outputscale_constraint.transform = lambda raw: -raw.abs() - 0.1
    with collect_reports() as reports, pytest.warns(NumericalWarning, match="p.d."), pytest.raises(NotPSDError):
        there.loss()
    assert not reports


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_a_poisoned_memory_costs_time_only(device: StandIn, poison: float) -> None:
    there = trained_on_the_device(build(n=N, dtype=torch.float32))
    with collect_reports() as reports:
        expected = there.loss().item()
        memory = the_memory()
        memory.solutions = tuple(torch.full_like(block, poison) for block in memory.solutions)
        assert there.loss().item() == pytest.approx(expected, abs=1e-3)
    assert [report.solver for report in reports] == ["rangeformer"] * 2


@pytest.mark.parametrize("before", [-1, 0, 1, 10**9])
def test_a_step_takes_the_iterations_it_needs_whatever_those_before_took(device: StandIn, before: int) -> None:
    there = trained_on_the_device(build(n=N, dtype=torch.float32))
    memory = the_memory()
    memory.solved_in, memory.solutions, memory.corrections = (before,), (), ()
    with collect_reports() as reports:
        there.loss()
    assert reports[0].solver == "rangeformer"
    assert reports[0].iterations > 1
