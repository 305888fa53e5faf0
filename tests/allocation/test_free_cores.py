"""Calls take half of the threads beside other work, all of them else, and leave PyTorch's number as it was."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import gpytorch
import pytest
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.allocation import free_cores
from gp_rangeformer.allocation.free_cores import OTHER_WORK, beside_other_work

THREADS = 4


class Machine:
    """Seconds of this thread's own time and how often it has left its core, as a call after the other finds them."""

    def __init__(self) -> None:
        self.seconds, self.left_core, self.per_second = 0.0, 0.0, 0.0

    def usage(self) -> tuple[float, int]:
        return self.seconds, round(self.left_core)

    def meet_other_work(self) -> None:
        self.per_second = 300
        self.call()
        self.call()

    def call(self, seconds: float = 2**-5) -> int:
        """How many threads a call of so many seconds has."""
        with free_cores.free_cores():
            self.seconds += seconds
            self.left_core += seconds * self.per_second
            return torch.get_num_threads()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine()
    monkeypatch.setattr(free_cores, "_usage", found.usage)
    monkeypatch.setattr(free_cores, "_THIS_THREAD", 1)  # wherever the tests run
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    free_cores.forget()
    yield found
    free_cores.forget()
    assert torch.get_num_threads() == THREADS
    torch.set_num_threads(before)


def test_alone_all_threads_answer(machine: Machine) -> None:
    machine.per_second = 90
    assert [machine.call() for _ in range(200)] == [THREADS] * 200


def test_a_first_call_that_reads_files_is_no_other_work(machine: Machine) -> None:
    machine.per_second = 400
    assert machine.call() == THREADS
    machine.per_second = 50
    assert [machine.call() for _ in range(20)] == [THREADS] * 20


def test_beside_other_work_half_of_them(machine: Machine) -> None:
    machine.per_second = 250
    assert [machine.call() for _ in range(4)] == [THREADS, THREADS, THREADS // 2, THREADS // 2]
    assert beside_other_work()


def test_short_calls_are_judged_together(machine: Machine) -> None:
    """One that loses its core once in a millisecond says nothing."""
    machine.call(0.029)
    machine.per_second = 1000
    machine.call(0.001)
    machine.call(0.001)
    assert not beside_other_work()
    for _ in range(60):
        machine.call(0.001)
    assert beside_other_work()


def test_all_are_tried_again_and_less_often_in_vain(machine: Machine) -> None:
    machine.per_second = 300
    tried = [index for index in range(5000) if machine.call() == THREADS]
    waits = [after - before for before, after in itertools.pairwise(tried)]
    assert tried[:2] == [0, 1]
    # For 2, 4, ... seconds, in calls of 1/32 s; and the one that tries.
    assert waits[1:6] == [65, 129, 257, 513, 1025]
    assert set(waits[5:]) == {1025}


def test_all_are_back_when_the_other_work_has_ended(machine: Machine) -> None:
    machine.meet_other_work()
    machine.per_second = 5
    found = [machine.call() for _ in range(200)]
    assert found == [THREADS // 2] * 64 + [THREADS] * 136
    assert not beside_other_work()
    machine.meet_other_work()
    machine.per_second = 5
    assert [machine.call() for _ in range(65)] == [THREADS // 2] * 64 + [THREADS]  # not twice as long


def test_calls_inside_calls_are_not_halved_twice(machine: Machine) -> None:
    machine.meet_other_work()
    with free_cores.free_cores():
        assert machine.call() == THREADS // 2
        assert machine.call() == THREADS // 2


def test_a_call_that_fails_leaves_all_threads(machine: Machine) -> None:
    machine.meet_other_work()
    with pytest.raises(KeyboardInterrupt), free_cores.free_cores():
        raise KeyboardInterrupt
    assert torch.get_num_threads() == THREADS
    assert machine.call() == THREADS // 2


def test_deterministic_answers_keep_all(machine: Machine) -> None:
    machine.meet_other_work()
    with settings.deterministic():
        assert machine.call() == THREADS
        assert not beside_other_work()


def test_processes_of_a_group_keep_all(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.meet_other_work()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert machine.call() == THREADS


def test_where_nothing_is_counted_nothing_is_noticed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_cores, "_THIS_THREAD", None)
    machine.per_second = 300
    assert [machine.call() for _ in range(5)] == [THREADS] * 5


def test_other_threads_keep_all(machine: Machine) -> None:
    """Theirs would be what every later one starts with."""
    machine.meet_other_work()
    found: list[int] = []
    own = threading.Thread(target=lambda: (torch.set_num_threads(THREADS), found.append(machine.call())))
    own.start()
    own.join()
    assert found == [THREADS]


def test_a_number_that_is_chosen_inside_stays(machine: Machine) -> None:
    machine.meet_other_work()
    with free_cores.free_cores():
        torch.set_num_threads(3)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    assert not beside_other_work()
    torch.set_num_threads(THREADS)
    assert beside_other_work()


def test_one_thread_stays_one(machine: Machine) -> None:
    machine.per_second = 300
    torch.set_num_threads(1)
    assert [machine.call() for _ in range(5)] == [1] * 5
    torch.set_num_threads(THREADS)


def test_usage_is_of_this_thread() -> None:
    if free_cores._THIS_THREAD is None:
        pytest.skip("no counts of a thread's switches here")
    seconds, left_core = free_cores._usage()
    total = torch.zeros(())
    for _ in range(2000):
        total = total + torch.randn(50, 50).sum()
    later, left_core_later = free_cores._usage()
    assert later > seconds
    assert left_core_later >= left_core


def test_a_training_step_says_so_and_agrees(machine: Machine) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1200, 3, generator=generator, dtype=torch.float64)
    y = torch.sin(4 * x.sum(1)) + 0.1 * torch.randn(len(x), generator=generator, dtype=torch.float64)

    def step() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        model: Any = Model(x, y, likelihood).double().train()
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        with settings.rangeformer():
            loss: Any = mll(model(x), y)
            loss.backward()
        report = gp_rangeformer.last_report()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
        return loss.detach(), gradient, report.notes

    alone, gradient, notes = step()
    assert OTHER_WORK not in notes
    machine.meet_other_work()
    beside, other_gradient, notes = step()
    assert OTHER_WORK in notes
    # float64: only the order of sums differs, between threads, in a solve to 1 % that certifies.
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-6)


class Model(gpytorch.models.ExactGP):
    def __init__(self, x: torch.Tensor, y: torch.Tensor, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(1.5, ard_num_dims=3))

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        mean: Any = self.mean_module(x)
        return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))
