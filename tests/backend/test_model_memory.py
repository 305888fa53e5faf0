"""What is remembered between steps: it saves time, belongs to one model, is bounded, and never changes an answer."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable, Iterator

import gpytorch
import pytest
import torch

from gp_rangeformer import clear_memory, collect_reports, last_report, memory_bytes, settings
from gp_rangeformer.backend.memories import memory_of
from gp_rangeformer.backend.memories import owners as owners_of
from gp_rangeformer.ranges.landmarks import Landmarks
from gp_rangeformer.ranges.memory import Memory
from gp_rangeformer.solvers.reason import Reason
from tests.backend.market import Problem, build, exact_path, rangeformer_path, relative
from tests.backend.test_bad_input import added_diagonal, kernel_matrix
from tests.backend.test_optimisers import train_adam


@pytest.fixture
def one_blas_thread() -> Iterator[None]:
    """On a busy machine BLAS varies its number of threads, hence the rounding, hence which landmarks are drawn."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    with settings.history(0):
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
    with settings.max_passes(1), warnings.catch_warnings(), rangeformer_path():
        warnings.simplefilter("ignore")
        added_diagonal(first, 1e-4).inv_quad_logdet(rhs, logdet=True)
        assert last_report().fell_back  # type: ignore[union-attr]
    assert ask(second) == alone
    assert memory_bytes() == 0


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
    memory.solutions = _memory_of(other).solutions * 2


def _poison_landmarks(memory: Memory) -> None:
    memory.landmarks = Landmarks(torch.tensor([3, 3, 3, 10**6]))


def _poison_few_landmarks(memory: Memory) -> None:
    memory.landmarks = Landmarks(torch.tensor([0]))


def _poison_counters(memory: Memory) -> None:
    memory.baseline_iterations = -1.0
    memory.failures = 10**6


_memory_of = memory
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
        poison(memory(problem))
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


@pytest.mark.usefixtures("one_blas_thread")
def test_the_same_inputs_and_seed_give_the_same_bits() -> None:
    def run() -> list[torch.Tensor]:
        clear_memory()
        problem = build("matern12", batch=(2,))
        with rangeformer_path(tolerance=0.01), gpytorch.settings.fast_pred_var():
            losses = train_adam(problem, steps=4)
            prediction = problem.predict()
            return [torch.tensor(losses), prediction.mean.detach(), prediction.covariance_matrix.detach()]

    expected = run()
    torch.manual_seed(123)  # the global generator must not matter
    torch.rand(10)
    for ours, before in zip(run(), expected, strict=True):
        assert torch.equal(ours, before)


def test_another_seed_gives_another_estimate_and_the_global_generator_is_left_alone() -> None:
    problem = build("matern12")
    state = torch.get_rng_state()
    with rangeformer_path():
        first = problem.loss().item()
        clear_memory()
        with settings.seed(5):
            second = problem.loss().item()
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second
    assert first == pytest.approx(second, abs=0.1)


@pytest.mark.usefixtures("one_blas_thread")
@pytest.mark.parametrize("fast_log_prob", [True, False], ids=["gpytorch", "botorch"])
def test_two_threads_train_two_models_as_one_after_the_other(fast_log_prob: bool) -> None:
    kernels = ["matern12", "matern32", "rbf"]
    results: dict[str, list[float]] = {}

    def train(kernel: str) -> None:
        torch.set_num_threads(1)  # a setting of the calling thread
        results[kernel] = train_adam(build(kernel), steps=8)

    with gpytorch.settings.fast_computations(log_prob=fast_log_prob), rangeformer_path(tolerance=0.01):
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
        assert results[kernel] == expected[kernel]


def test_the_exact_path_remembers_nothing() -> None:
    with exact_path():
        train_adam(build(), steps=2)
    assert memory_bytes() == 0
