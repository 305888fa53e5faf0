"""What a training step leaves behind for the next one, and what that spends on its preconditioner."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.effort import (
    WINDOW,
    Effort,
    Trial,
    control_within_reach,
    iteration_cost,
    worthwhile_effort,
)
from gp_rangeformer.preconditioner.nystrom import PreconditionerFacts
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified, neighbours_known_to_pay
from gp_rangeformer.solvers.gradient_weight import CONTROL_GAP
from gp_rangeformer.system.answers import LogDet, Solution
from gp_rangeformer.system.linear_system import LinearSystem

# Iterations that the first step after a draw of landmarks counts for at least: more than one tell landmarks apart.
_FEWEST_ITERATIONS = 4
# Steps whose iterations say how many the next one starts before it looks.
_SOLVES = 2


def gap_for_neighbours(solver: Certified, system: LinearSystem, facts: PreconditionerFacts) -> float:
    """The mean of diag(D^-1 (K - Q)), what landmarks leave; 0 where there can be no neighbours."""
    return facts.mean_gap if solver.neighbours > 0 and neighbours_known_to_pay(system) else 0.0


def learn_from_step(
    memory: Memory,
    solver: Certified,
    system: LinearSystem,
    facts: PreconditionerFacts,
    solution: Solution,
    near: Float[Tensor, "n m"] | None,
    logdet: LogDet | None,
) -> None:
    """Leave in ``memory`` the solution and its iterations, what they say of the landmarks, and the next effort.

    :param near: what the solution is remembered without: that of whitened probes changes with the preconditioner.
    """
    memory.failures = 0
    memory.solved_in = (*memory.solved_in, solution.iterations)[-_SOLVES:]
    warm = len(memory.solutions) >= min(2, solver.history)
    correction = solution.correction if solver.predictor == "rows" else None
    value = solution.value if near is None else solution.value - near
    memory.remember(value, solver.history, correction)
    if solver.adaptive_rank and warm:
        columns = value.shape[1]
        # Passes of Lanczos, of fewer columns, which neighbours save as well.
        lanczos = 0.0
        if logdet is not None and gap_for_neighbours(solver, system, facts) > solver.neighbours_above:
            lanczos = logdet.passes * solver.num_logdet_probes / columns
        memory.iterations = (*memory.iterations, solution.iterations + lanczos)[-WINDOW:]
        learned = logdet is not None and logdet.method == "learned"
        choose_effort(memory, solver, system, facts, columns, learned=learned)
    if memory.baseline_iterations is None:
        memory.baseline_iterations = max(solution.iterations, _FEWEST_ITERATIONS)
    elif solution.iterations > solver.landmark_refresh * memory.baseline_iterations:
        memory.forget_landmarks()


def choose_effort(
    memory: Memory,
    solver: Certified,
    system: LinearSystem,
    facts: PreconditionerFacts,
    columns: int,
    *,
    learned: bool,
) -> None:
    """Leave in ``memory`` how many landmarks and neighbours the next step takes.

    :param columns: right-hand sides of a step.
    :param learned: the learned log determinant answered this one.
    """
    n = system.size
    neighbours = min(max(memory.neighbour_count or 0, 0), solver.neighbours)
    effort = Effort(memory.rank or solver.rank, neighbours)
    in_iterations = effort.cost(n) / iteration_cost(n, columns)
    # Over the whole window also before it is full: a handful of iterations in one step proves little.
    average = sum(memory.iterations) / WINDOW
    if memory.trial is not None and len(memory.iterations) == WINDOW:
        trial, memory.trial = memory.trial, None
        if trial.failed(in_iterations, memory.iterations):
            # Until steps are twice as hard as they were without.
            memory.neighbour_count, memory.neighbour_bar = trial.neighbours, 2 * trial.iterations
            memory.iterations = ()
            return
    if neighbours and len(memory.iterations) < WINDOW:
        return  # another preconditioner whitens other probes, whose first solution is far
    gap = gap_for_neighbours(solver, system, facts) if average > memory.neighbour_bar else 0.0
    above = solver.neighbours_above
    new = worthwhile_effort(n, columns, effort, average, solver.largest_effort, gap, above=above, learned=learned)
    if new.neighbours > effort.neighbours:
        memory.trial = Trial.begin(effort.neighbours, in_iterations, memory.iterations)
    if new == effort and _control_is_near(facts):
        new = Effort(min(2 * effort.rank, solver.rank), effort.neighbours)
    if new != effort:
        memory.rank, memory.neighbour_count, memory.iterations = new.rank, new.neighbours, ()


def _control_is_near(facts: PreconditionerFacts) -> bool:
    if len(facts.spectrum) < 2:
        return False
    halfway = facts.spectrum[len(facts.spectrum) // 2 - 1]
    return control_within_reach(facts.mean_gap, float(facts.spectrum[-1] / halfway), CONTROL_GAP)
