"""How many landmarks and neighbours: the rule itself, and what it does along a trajectory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gp_rangeformer import settings
from gp_rangeformer.preconditioner.effort import (
    FEWEST_NEIGHBOURS,
    SATURATED,
    STARTING_RANK,
    Effort,
    Trial,
    control_within_reach,
    iteration_cost,
    worthwhile_effort,
)
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers import certified as solver_module
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.gradient_weight import CONTROL_GAP
from tests.plugin.market import build, rangeformer_path
from tests.system.systems import kernel_matrix, points, system, targets

N, COLUMNS = 1000, 33
X = points(N, 4)
CASES = [(n, rank, largest) for n in (50, 150, 1000, 20_000) for rank in (1, 32, 128, 300) for largest in (100, 400)]


def worthwhile_rank(n: int, columns: int, rank: int, iterations: int, largest: int) -> int:
    """Without neighbours."""
    return worthwhile_effort(n, columns, Effort(rank), iterations, Effort(largest)).rank


def threshold(n: int, columns: int, rank: int, largest: int) -> int:
    """The fewest iterations at which the rule doubles."""
    return next(it for it in range(10**6) if worthwhile_rank(n, columns, rank, it, largest) > rank)


@pytest.mark.parametrize(("n", "rank", "largest"), CASES)
def test_the_rank_never_grows_beyond_its_limits_and_never_shrinks(n: int, rank: int, largest: int) -> None:
    for iterations in (0, 5, 50, 10**9):
        found = worthwhile_rank(n, COLUMNS, rank, iterations, largest)
        assert found == rank or rank < found <= min(largest, n, 2 * rank)
    grown = worthwhile_rank(n, COLUMNS, rank, 10**9, largest)
    assert grown == max(rank, min(2 * rank, largest, n))


@pytest.mark.parametrize(("n", "rank", "largest"), CASES)
def test_more_iterations_never_ask_for_fewer_landmarks(n: int, rank: int, largest: int) -> None:
    ranks = [worthwhile_rank(n, COLUMNS, rank, iterations, largest) for iterations in range(0, 400, 3)]
    assert ranks == sorted(ranks)


def test_a_step_without_iterations_asks_for_nothing() -> None:
    assert worthwhile_rank(10_000, COLUMNS, 128, 0, 400) == 128


@pytest.mark.parametrize("n", [1000, 4000, 20_000])
def test_the_rank_doubles_where_a_quarter_of_the_iterations_costs_more_than_the_landmarks(n: int) -> None:
    first = threshold(n, COLUMNS, 128, 400)
    extra = Effort(256).cost(n) - Effort(128).cost(n)
    iteration = iteration_cost(n, COLUMNS)
    assert iteration > 2 * n**2 * COLUMNS
    assert 0.25 * (first - 1) * iteration <= extra < 0.25 * first * iteration


def test_larger_systems_and_more_columns_make_landmarks_worthwhile_sooner() -> None:
    by_size = [threshold(n, COLUMNS, 128, 400) for n in (1000, 2000, 4000, 8000)]
    by_columns = [threshold(2000, columns, 128, 400) for columns in (2, 9, 33)]
    by_rank = [threshold(4000, COLUMNS, rank, 10_000) for rank in (64, 128, 256)]
    assert by_size == sorted(by_size, reverse=True)
    assert by_size[-1] < by_size[0]
    assert by_columns[-1] < by_columns[0]
    assert by_rank[0] < by_rank[-1]


@pytest.mark.parametrize(("count", "saved"), [(0, 0.5), (32, 0.3)])
def test_neighbours_come_where_what_they_save_costs_more_than_they(count: int, saved: float) -> None:
    n, rank = 8000, 400
    effort, largest = Effort(rank, count), Effort(rank, 64)
    more = Effort(rank, count + 32)
    extra = more.cost(n) - effort.cost(n)
    first = extra / (saved * iteration_cost(n, COLUMNS))
    gap = 2 * SATURATED
    assert worthwhile_effort(n, COLUMNS, effort, 0.99 * first, largest, gap) == effort
    assert worthwhile_effort(n, COLUMNS, effort, 1.01 * first, largest, gap) == more
    assert worthwhile_effort(n, COLUMNS, effort, 10**9, largest, SATURATED) == effort
    assert worthwhile_effort(n, COLUMNS, more, 10**9, Effort(rank, more.neighbours), gap) == more


def test_what_saves_most_is_chosen() -> None:
    """Half of the iterations rather than a quarter, unless the neighbours cost too much for so small a system."""
    assert worthwhile_effort(8000, COLUMNS, Effort(64), 20, Effort(400, 64), 10.0) == Effort(64, FEWEST_NEIGHBOURS)
    assert worthwhile_effort(1000, COLUMNS, Effort(64), 9, Effort(400, 64), 10.0) == Effort(128)


def test_where_the_learned_log_determinant_answers_neighbours_pay_for_lanczos_too() -> None:
    effort, largest, n = Effort(400), Effort(400, 64), 8000

    def first(learned: bool) -> int:
        """The fewest iterations at which neighbours come."""
        efforts = (worthwhile_effort(n, COLUMNS, effort, it, largest, 5.0, learned=learned) for it in range(1000))
        return next(it for it, found in enumerate(efforts) if found.neighbours)

    assert first(True) == first(False) + 12  # six more iterations, where half of them are saved


def test_a_trial_fails_where_steps_become_dearer() -> None:
    trial = Trial.begin(0, 0.5, (9.0, 11.0))
    assert trial == Trial(0, 0.5, 10.0)
    assert not trial.failed(4.0, (6.0, 7.0))
    assert trial.failed(4.0, (6.0, 7.1))


def ranks_along(name: str, lengthscale: float, noise: float, **options: Any) -> tuple[list[int], list[int]]:
    """(landmarks of the memory after every step, iterations) of eight steps."""
    solver = Certified(rank=400, predictor="previous", logdet="lanczos", **options)
    memory, rhs = Memory(), targets(N)
    ranks, iterations = [], []
    for step in range(8):
        linear_system = system(kernel_matrix(X, name, lengthscale * 1.05**step), noise)
        evaluation = solver.prepare(linear_system, memory).evaluate(rhs)
        assert evaluation.fallback_reason is None
        iterations.append(evaluation.solution.iterations)
        ranks.append(memory.rank or 0)
    return ranks, iterations


def test_along_a_hard_trajectory_the_rank_grows_and_the_iterations_fall() -> None:
    """Measured: 64, 64, 128, 128, 128, 256, 256, 256 landmarks after, and 40, 40, 40, 35, 36, 36, 28, 28 iterations in
    the eight steps; the rule doubles at 8 and at 21, averaged over four warm steps, of which the third is the first.
    """
    ranks, iterations = ranks_along("matern32", 1.0, 1e-5, adaptive_rank=True)
    assert ranks[0] == STARTING_RANK
    assert ranks[-1] >= 2 * STARTING_RANK
    assert ranks == sorted(ranks)
    assert max(ranks) <= 400
    last_of_the_first = ranks.index(256)  # the growth follows this step and serves the next one
    assert iterations[last_of_the_first + 1] < iterations[last_of_the_first]


@pytest.mark.parametrize(
    ("gap", "decay", "expected"),
    [(0.15, 0.3, True), (0.15, 0.9, False), (0.05, 0.1, False), (0.5, 0.01, False), (float("nan"), 0.1, False)],
)
def test_the_control_variate_is_reached_for_from_nearby_alone(gap: float, decay: float, expected: bool) -> None:
    assert control_within_reach(gap, decay, 0.1) is expected


def test_where_the_control_variate_is_near_the_rank_grows_for_it() -> None:
    """Measured: a gap of 0.29 with 64 landmarks and 0.04 with 128."""
    memory, solver = Memory(), Certified(rank=400, adaptive_rank=True, predictor="previous")
    gaps = []
    for _ in range(5):
        prepared = solver.prepare(system(kernel_matrix(X, "rbf", 2.0), 0.05), memory)
        assert prepared.preconditioner is not None
        gaps.append((prepared.preconditioner.rank, float(prepared.preconditioner.gap.mean())))
        prepared.evaluate(targets(N))
    (first, before), (last, after) = gaps[0], gaps[-1]
    assert (first, last) == (STARTING_RANK, 2 * STARTING_RANK)
    assert after < CONTROL_GAP < before


def test_along_an_easy_trajectory_the_rank_stays() -> None:
    ranks, iterations = ranks_along("rbf", 3.0, 0.5, adaptive_rank=True)
    assert ranks == [STARTING_RANK] * 8
    assert max(iterations) < 5


@pytest.fixture
def landmark_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many landmarks every preconditioner was built from."""
    counts: list[int] = []
    original = solver_module.nystrom_preconditioner

    def counting(linear_system: Any, proposal: Any, **options: Any) -> Any:
        counts.append(len(proposal.index))
        return original(linear_system, proposal, **options)

    monkeypatch.setattr(solver_module, "nystrom_preconditioner", counting)
    return counts


def test_without_adaptation_every_step_has_the_full_rank(landmark_counts: list[int]) -> None:
    ranks_along("matern32", 1.0, 0.1, adaptive_rank=False)
    assert landmark_counts == [400] * 8


def test_a_smaller_limit_than_the_starting_rank_is_kept(landmark_counts: list[int]) -> None:
    solver = Certified(rank=20, adaptive_rank=True)
    memory = Memory()
    linear_system = system(kernel_matrix(X[:200]), 0.1)
    for _ in range(3):
        solver.prepare(linear_system, memory).evaluate(targets(200))
    assert landmark_counts == [20] * 3


def test_predictions_use_the_full_rank_and_leave_the_landmarks_of_training_alone(landmark_counts: list[int]) -> None:
    problem = build("matern12", n=300)
    with rangeformer_path(tolerance=1e-3, rank=200), settings.solver(adaptive_rank=True), torch.no_grad():
        problem.loss()
        _ = problem.predict().mean
        problem.loss()
    first, *predictions, last = landmark_counts
    assert (first, set(predictions), last) == (STARTING_RANK, {200}, STARTING_RANK)
