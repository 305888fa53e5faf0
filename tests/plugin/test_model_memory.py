"""What is remembered between steps: it saves time, belongs to one model, is bounded, and never changes an answer."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpytorch
import pytest
import torch

from gp_rangeformer import clear_memory, collect_reports, last_report, memory_bytes, settings
from gp_rangeformer.plugin.owners import memory_of
from gp_rangeformer.plugin.owners import owners as owners_of
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import Problem, added_diagonal, build, exact_path, rangeformer_path
from tests.plugin.test_bad_input import kernel_matrix
from tests.plugin.test_optimisers import train_adam

pytestmark = pytest.mark.usefixtures("predicts_small_systems")


def memory(problem: Problem) -> Memory:
    """The memory that the model's training steps use."""
    with settings.rangeformer():
        kernel = problem.model.covar_module(problem.x).evaluate_kernel()
        marks = owners_of(kernel)
    assert marks, "the evaluated kernel carries no owner"
    return memory_of(marks, kernel.to_dense(), 0)


def iterations(problem: Problem, tolerance: float = 0.01) -> int:
    with rangeformer_path(tolerance=tolerance) as reports:
        problem.loss().backward()
    (report,) = reports
    assert report.solver == "rangeformer"
    return report.iterations


def test_memory_survives_leaving_and_entering_the_flag_again() -> None:
    problem = build("matern12")
    cold = iterations(problem)
    problem.loss().backward()  # flag off in between
    assert iterations(problem) < cold
    clear_memory()
    assert iterations(problem) == cold


def test_memory_serves_kernels_that_are_evaluated_eagerly() -> None:
    problem = build("matern12")
    with gpytorch.settings.lazily_evaluate_kernels(False):
        cold = iterations(problem)
        assert iterations(problem) < cold


def test_memory_serves_the_predictive_mean_after_training() -> None:
    problem = build("matern12")
    with rangeformer_path(tolerance=1e-3) as reports:
        problem.loss()
        problem.predict().mean.sum()
        warm = next(report.iterations for report in reports if report.operation == "solve")
    clear_memory()
    with rangeformer_path(tolerance=1e-3) as reports:
        problem.predict().mean.sum()
        cold = next(report.iterations for report in reports if report.operation == "solve")
    assert warm < cold


@pytest.mark.parametrize("same_seed", [True, False], ids=["same_start", "other_start"])
def test_two_models_trained_in_turn_do_not_disturb_each_other(same_seed: bool) -> None:
    """On the same data: n, dtype and device are equal, only the kernel modules differ."""

    def steps(problem: Problem) -> Iterator[int]:
        optimiser = torch.optim.Adam(problem.model.parameters(), lr=0.1)
        for _ in range(6):
            optimiser.zero_grad()
            yield iterations(problem)
            optimiser.step()

    def pair() -> tuple[Problem, Problem]:
        first, second = build("matern12"), build("matern12")
        if not same_seed:
            second.model.covar_module.base_kernel.lengthscale = 0.1
        return first, second

    alone = []
    for problem in pair():
        clear_memory()
        alone.append(list(steps(problem)))
    clear_memory()
    in_turn = list(zip(*map(steps, pair()), strict=True))
    assert [list(counts) for counts in zip(*in_turn, strict=True)] == alone


def test_a_copied_model_has_its_own_memory() -> None:
    problem = build("matern12")
    cold = iterations(problem)
    twin = copy.deepcopy(problem)
    assert iterations(twin) == cold


def test_elements_of_a_batch_have_their_own_memories() -> None:
    problem = build("matern12", batch=(3,))
    cold = iterations(problem)
    assert iterations(problem) <= 0.2 * cold
    single = build("matern12")
    iterations(single)
    assert memory_bytes() > 3 * 150 * 17 * 8


def test_memory_is_released_by_clear_memory() -> None:
    problem = build()
    iterations(problem)
    assert memory_bytes() > 0
    clear_memory()
    assert memory_bytes() == 0


def test_memory_is_released_with_its_model() -> None:
    problem, other = build(), build("rbf")
    iterations(problem)
    iterations(other)
    both = memory_bytes()
    del problem
    gc.collect()
    assert 0 < memory_bytes() < both
    del other
    gc.collect()
    assert memory_bytes() == 0


def test_memory_stays_below_its_limit_and_answers_go_on() -> None:
    problem = build()
    iterations(problem)
    one = memory_bytes()
    clear_memory()
    problems = [build() for _ in range(4)]
    with settings.memory_limit(2 * one):
        for problem in problems:
            iterations(problem)
            iterations(problem)
            assert memory_bytes() <= 2 * one
    with settings.memory_limit(0):
        iterations(problem)
        assert memory_bytes() == 0


def test_no_history_remembers_no_solutions() -> None:
    problem = build()
    with settings.solver(history=0):
        cold = iterations(problem)
        assert iterations(problem) == cold
    assert memory(problem).solutions == ()


def test_an_operator_of_unknown_origin_leaves_no_memory_behind() -> None:
    """Two matrices of one size may have nothing to do with each other: one must not pause or mislead the other."""
    rhs = torch.ones(200, 1, dtype=torch.float64)
    first, second = kernel_matrix(), kernel_matrix(lengthscale=0.02)

    def ask(kernel: torch.Tensor) -> int:
        with rangeformer_path(tolerance=0.01) as reports:
            added_diagonal(kernel, 0.01).inv_quad_logdet(rhs, logdet=True)
        assert reports[0].reason is Reason.CONVERGED
        return reports[0].iterations

    alone = ask(second)
    clear_memory()
    with settings.solver(max_passes=1), warnings.catch_warnings(), rangeformer_path():
        warnings.simplefilter("ignore")
        added_diagonal(first, 1e-4).inv_quad_logdet(rhs, logdet=True)
        assert last_report().fell_back  # type: ignore[union-attr]
    assert ask(second) == alone
    assert memory_bytes() == 0


SAME_BITS = """
import gpytorch, torch
from gp_rangeformer import clear_memory
from tests.plugin.market import build, rangeformer_path
from tests.plugin.test_optimisers import train_adam

def run(seed):
    torch.manual_seed(seed)  # the global generator must not matter
    clear_memory()
    problem = build("matern12", batch=(2,))
    with rangeformer_path(tolerance=0.01) as reports, gpytorch.settings.fast_pred_var():
        losses = train_adam(problem, steps=4)
        prediction = problem.predict()
        results = [torch.tensor(losses), prediction.mean.detach(), prediction.covariance_matrix.detach()]
    assert {report.solver for report in reports} == {"rangeformer", "exact"}, reports.counts
    return results

for ours, before in zip(run(1), run(2), strict=True):
    assert torch.equal(ours, before), (ours - before).abs().max()
"""


def test_the_same_inputs_and_seed_give_the_same_bits() -> None:
    # In a process with one BLAS thread: on a busy machine BLAS varies their number, and with it the rounding.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", SAME_BITS], check=True, cwd=root, env=environment, timeout=120)


def test_another_seed_gives_another_estimate_and_the_global_generator_is_left_alone() -> None:
    problem = build("matern12")
    state = torch.get_rng_state()
    with rangeformer_path():
        first = problem.loss().item()
        clear_memory()
        with settings.solver(seed=5):
            second = problem.loss().item()
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second
    assert first == pytest.approx(second, abs=0.1)


@pytest.mark.parametrize("fast_log_prob", [True, False], ids=["gpytorch", "botorch"])
def test_two_threads_train_two_models_as_one_after_the_other(fast_log_prob: bool) -> None:
    kernels = ["matern12", "matern32", "rbf"]
    results: dict[str, list[float]] = {}

    def train(kernel: str) -> None:
        results[kernel] = train_adam(build(kernel), steps=8)

    # Uniform landmarks: where BLAS uses fewer threads on a busy machine, only rounding differs, and no draw follows it.
    with (
        gpytorch.settings.fast_computations(log_prob=fast_log_prob),
        settings.solver(landmarks="uniform"),
        rangeformer_path(tolerance=0.01),
    ):
        for kernel in kernels:
            train(kernel)
        expected, results = results, {}
        clear_memory()
        # Threads interleave where the host switches lazy evaluation off and back on: entered here to be restored.
        with collect_reports() as reports, gpytorch.settings.lazily_evaluate_kernels(True):
            threads = [threading.Thread(target=train, args=(kernel,)) for kernel in kernels]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert gpytorch.settings.fast_computations.log_prob.on() == fast_log_prob
    assert len(reports) == 8 * len(kernels)
    assert {report.solver for report in reports} == {"rangeformer"}
    for kernel in kernels:
        assert results[kernel] == pytest.approx(expected[kernel], abs=1e-7)


def test_the_exact_path_remembers_nothing() -> None:
    with exact_path():
        train_adam(build(), steps=2)
    assert memory_bytes() == 0


@pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op. is deprecated")  # one of all the objects there are
@pytest.mark.parametrize("path", [exact_path, rangeformer_path], ids=["exact", "rangeformer"])
def test_a_step_leaves_no_matrix_waiting_for_the_garbage_collector(path: Callable[[], Any]) -> None:
    def systems() -> int:
        return sum(isinstance(candidate, LinearSystem) for candidate in gc.get_objects())

    problem = build(n=120)
    gc.collect()
    before = systems()
    gc.disable()
    try:
        with path() as reports, gpytorch.settings.detach_test_caches(False):
            problem.loss().backward()
            problem.loss()  # whose graph is dropped unused
            problem.predict().mean.sum().backward()
            problem.model.train()
        assert len(reports) == 5
        assert systems() == before
    finally:
        gc.enable()
