"""A memory that is stale, foreign or garbage costs time and changes no answer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.preconditioner.effort import Trial
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.neighbours import Neighbours
from gp_rangeformer.preconditioner.sparse_rows import SparsePattern
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.report import GradientError, HyperparameterGradient, ReportCollection
from gp_rangeformer.solvers.certified import Certified
from tests.fuzz.truth import Truth, exact
from tests.plugin.market import (
    Problem,
    build,
    dense_covariance,
    flat_gradient,
    plain_probes,
    probe_gradient,
    rangeformer_path,
    relative,
)
from tests.plugin.test_model_memory import iterations
from tests.plugin.test_model_memory import memory as memory_of


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


# --------------------------------------------------------------------------------------------------------------------
# The same for what ships: predictor "rows", adaptive rank, the learned tail, checked gradients

Poison = Callable[[Memory], None]


def _of_tensors(change: Callable[[Tensor], Tensor]) -> list[Poison]:
    def solutions(memory: Memory) -> None:
        memory.solutions = tuple(change(old) for old in memory.solutions)

    def corrections(memory: Memory) -> None:
        memory.corrections = tuple(change(old) for old in memory.corrections)

    def newest(memory: Memory) -> None:
        memory.solutions = (*memory.solutions[:-1], change(memory.solutions[-1]))

    return [solutions, corrections, newest]


def _one_entry(value: float) -> Callable[[Tensor], Tensor]:
    def change(old: Tensor) -> Tensor:
        new = old.clone()
        new[3, 0] = value
        return new

    return change


GARBAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda old: torch.full_like(old, math.nan),
    "one nan": _one_entry(math.nan),
    "one infinity": _one_entry(math.inf),
    "infinity": lambda old: old / 0,
    "huge": lambda old: 1e200 * old,
    "largest": lambda old: torch.full_like(old, 1.7e308),
    "tiny": lambda old: 1e-310 * old,
    "zero": torch.zeros_like,
    "noise": lambda old: 1e3 * torch.randn_like(old),
    "the other sign": lambda old: -old,
    "constant": torch.ones_like,
    "more rows": lambda old: torch.cat([old, old]),
    "fewer columns": lambda old: old[:, :-1],
    "no columns": lambda old: old[:, :0],
    "a vector": lambda old: old[:, 0],
    "a number": lambda old: old[0, 0],
    "a batch": lambda old: old.unsqueeze(0),
    "half": lambda old: old.half(),
    "single": lambda old: old.float(),
    "integers": lambda old: (100 * old).long(),
    "complex": lambda old: torch.complex(old, old),
    "expanded": lambda old: old[:1].expand_as(old),
    "with a graph": lambda old: old.clone().requires_grad_(),
}

INDICES: dict[str, Callable[[int], Tensor]] = {
    "one": lambda n: torch.tensor([0]),
    "none": lambda n: torch.tensor([], dtype=torch.long),
    "duplicates": lambda n: torch.tensor([3, 3, 3, 5] * 20),
    "all the same": lambda n: torch.zeros(64, dtype=torch.long),
    "out of range": lambda n: torch.tensor([*range(70), n]),
    "negative": lambda n: torch.tensor([-1, *range(70)]),
    "all": lambda n: torch.arange(n),
    "floats": lambda n: torch.arange(70.0),
    "a matrix": lambda n: torch.arange(80).reshape(2, 40),
    "a number": lambda n: torch.tensor(7),
    "short integers": lambda n: torch.arange(70, dtype=torch.int16),
    "booleans": lambda n: torch.ones(2, dtype=torch.bool),
}

PATTERNS: dict[str, Callable[[int], Tensor]] = {
    "later points": lambda m: torch.full((m, 32), m - 1, dtype=torch.int32),
    "out of range": lambda m: torch.full((m, 32), 10**9, dtype=torch.int32),
    "none in front": lambda m: torch.tensor([-1] + [0] * 31, dtype=torch.int32).expand(m, 32).contiguous(),
    "fewer rows": lambda m: torch.full((m - 5, 32), -1, dtype=torch.int32),
    "of other integers": lambda m: torch.full((m, 32), -1),
    "a vector": lambda m: torch.full((m,), -1, dtype=torch.int32),
    "nobody's": lambda m: torch.full((m, 32), -1, dtype=torch.int32),
}
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "right": lambda order: order,
    "one point": torch.zeros_like,
    "short": lambda order: order[:-1],
    "negative": lambda order: order - 10**6,
    "floats": lambda order: order.double(),
}

WHOLE = (-(10**9), -1, 0, 1, 2, 3, 33, 10**9)
REAL = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 1e300)
NUMBERS: dict[str, tuple[object, ...]] = {
    "rank": (None, *WHOLE),
    "neighbour_count": (None, *WHOLE),
    "neighbour_bar": REAL,
    "trial": (
        None,
        Trial(0, math.nan, math.inf),
        Trial(10**9, 0.0, 0.0),
        Trial(-5, -1e300, 1e300),
    ),
    "iterations": ((), (-1.0, -1.0), (0.0,) * 4, (1e9,) * 4, (3.0,) * 50),
    "solved_in": ((), (-1, 0), (10**9,)),
    "baseline_iterations": (None, *REAL),
    "failures": WHOLE,
    "pause": WHOLE,
    "tail_calls": WHOLE,
    "tail_objection": (None, "no reason"),
    "num_probes": (None, *WHOLE),
    "gradient_calls": WHOLE,
    "exact_steps": WHOLE,
    "gradient_spread": REAL,
    "gradient_place": (None, *(torch.tensor(values) for values in ((), (0.0,), (math.nan,) * 4, (0.0,) * 99))),
    "gradient_error": (
        None,
        GradientError(()),
        GradientError((HyperparameterGradient("nobody", math.nan, math.inf),), age=-5),
    ),
    # Those that were made for something else. What a key says is not a proposal, and is not doubted.
    "draws": ({}, {"probes": ((), torch.ones(3)), "rows": ((), torch.full((16,), 10**6))}),
}


def _poisons() -> Iterator[tuple[str, Poison]]:
    for name, change in GARBAGE.items():
        for poison in _of_tensors(change):
            yield f"{poison.__name__}: {name}", poison
    for name, index in INDICES.items():
        for requested in (0, 10**9):

            def landmarks(memory: Memory, index=index, requested=requested) -> None:
                memory.landmarks = Landmarks(torch.arange(1), requested)
                vars(memory.landmarks)["index"] = index(SIZE)  # past the types that tests check at construction

            yield f"landmarks: {name}, {requested}", landmarks
    wrong_patterns = [(name, "right") for name in PATTERNS]
    for name, kind in [*wrong_patterns, *(("nobody's", kind) for kind in ORDERS if kind != "right")]:

        def neighbours(memory: Memory, pattern=PATTERNS[name], change=ORDERS[kind]) -> None:
            assert memory.landmarks is not None
            rest = torch.arange(SIZE)[~torch.isin(torch.arange(SIZE), memory.landmarks.index)]
            memory.neighbour_count = 32
            memory.neighbours = Neighbours(memory.landmarks, rest, SparsePattern(torch.zeros(1, 1).int()))
            vars(memory.neighbours).update(order=change(rest))
            vars(memory.neighbours.pattern).update(neighbours=pattern(len(rest)))

        yield f"neighbours: {name}, {kind} order", neighbours

    def whitened(memory: Memory) -> None:
        memory.whitened_by = SparsePattern(torch.zeros(1, 1).int())

    yield "solutions of other probes", whitened
    for field, values in NUMBERS.items():
        for value in values:

            def number(memory: Memory, field=field, value=value) -> None:
                setattr(memory, field, dict(value) if isinstance(value, dict) else value)
                if field == "rank":
                    memory.landmarks = None

            yield f"{field}: {value}", number


SIZE = 300


@contextlib.contextmanager
def as_shipped() -> Iterator[ReportCollection]:
    """The flag with its defaults, at any n; tight, so that gradients can be compared."""
    with (
        settings.rangeformer(),
        settings.min_size(100),
        settings.solver(tolerance=1e-6),
        settings.solver(prediction_tolerance=1e-6),
        settings.solver(neighbours=Certified().neighbours),
        collect_reports() as reports,
    ):
        yield reports


@dataclasses.dataclass
class Trained:
    """A model with what its steps have left, and the right answers to the next one."""

    problem: Problem
    left: dict[str, Any]
    truth: Truth
    by_probes: Tensor
    exact: Tensor
    mean: Tensor


@pytest.fixture(scope="module")
def trained() -> Trained:
    problem = build("matern32", n=SIZE, mean="zero")
    with plain_probes(), as_shipped() as reports:
        for _ in range(5):
            problem.loss_and_gradient()
    assert {(report.solver, report.logdet_method) for report in reports} == {("rangeformer", "learned")}
    assert settings.solver.value().predictor == "rows"
    memory = memory_of(problem)
    left = {field.name: getattr(memory, field.name) for field in dataclasses.fields(memory) if field.name != "lock"}
    assert (len(memory.solutions), len(memory.corrections), memory.rank) == (3, 2, 64)
    assert memory.landmarks is not None
    assert memory.gradient_error is not None
    _, covariance = dense_covariance(problem)
    truth = exact(covariance.detach(), torch.zeros(SIZE, dtype=torch.float64), problem.y)
    assert isinstance(truth, Truth)
    by_probes = probe_gradient(problem, settings.solver.value().num_probes)
    problem.model.zero_grad()
    problem.loss().backward()
    return Trained(problem, left, truth, by_probes, flat_gradient(problem.model), problem.predict().mean.detach())


@pytest.mark.parametrize("poison", [pytest.param(poison, id=name) for name, poison in _poisons()])
def test_whatever_stands_in_a_memory_costs_time_only(trained: Trained, poison: Poison) -> None:
    problem, truth, memory = trained.problem, trained.truth, memory_of(trained.problem)
    for name, value in trained.left.items():
        setattr(memory, name, dict(value) if name == "draws" else value)
    poison(memory)
    more_probes = memory.num_probes not in (None, trained.left["num_probes"])
    with plain_probes(), as_shipped() as reports, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = [problem.loss_and_gradient() for _ in range(2)]
        mean = problem.predict().mean
    for (loss, gradient), report in zip(answers, reports, strict=False):
        assert report.operation == "inv_quad_logdet"
        assert report.residual <= 1e-6
        assert report.mll is not None
        assert report.mll_interval is not None
        assert report.mll_interval.contains(truth.mll)
        assert report.mll_interval.contains(report.mll)
        assert report.mll == pytest.approx(truth.mll, abs=0.01 * SIZE)
        assert -loss * SIZE == pytest.approx(report.mll, rel=1e-9)
        right = min(relative(gradient, trained.by_probes), relative(gradient, trained.exact))
        # Of other probes than the first 32 the gradient is another, but as near to the exact one.
        # So they are where neighbours whiten them.
        other = more_probes or memory.whitened_by is not None
        assert right < 1e-5 or (other and relative(gradient, trained.exact) < 0.02)
    assert relative(mean, trained.mean) < 1e-5


def test_every_field_of_a_memory_is_poisoned() -> None:
    poisoned = {"solutions", "corrections", "whitened_by", "landmarks", "neighbours", *NUMBERS}
    assert poisoned == {field.name for field in dataclasses.fields(Memory)} - {"lock"}
