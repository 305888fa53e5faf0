"""What is promised of every answer, over random trajectories. A failure names recipes: ``python -m tests.fuzz --only``
with the first of two numbers, and ``--largest`` as here, prints the trajectory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.fuzz.__main__ import records_until
from tests.fuzz.tally import Record, claims_about_nothing, coverage
from tests.fuzz.trajectory import run_trajectory
from tests.fuzz.truth import Indefinite, Truth, exact

_SEED, _SMALL = 1, 250


@dataclass
class Run:
    records: list[Record]
    slack: float  # of a coverage: steps of one trajectory share their luck


@pytest.fixture(
    scope="module",
    params=[(300, _SMALL, 0.1), pytest.param((10_000, 1600, 0.03), marks=pytest.mark.big)],
    ids=["short", "long"],
)
def run(request: pytest.FixtureRequest) -> Run:
    steps, largest, slack = request.param
    records = list(records_until(steps, _SEED, largest))
    answered = {record.get("solver") for record in records}
    assert answered >= {"rangeformer", "exact"}
    return Run(records, slack)


def recipes(records: Iterable[Record], *keys: str) -> list[str]:
    return [f"{r['trajectory']}:{r['step']} {[r.get(key) for key in keys]}" for r in records]


def test_certain_intervals_contain_the_truth(run: Run) -> None:
    judged = [record for record in run.records if record.get("intervals")]
    assert len(judged) > len(run.records) // 2
    assert not recipes((r for r in judged if r.get("misses")), "solver", "reason", "dtype", "misses")


def test_no_certain_interval_for_a_matrix_that_is_not_positive_definite(run: Run) -> None:
    assert not recipes(filter(claims_about_nothing, run.records), "solver", "dtype", "smallest_eigenvalue")


def test_answers_are_finite_and_inside_their_own_intervals(run: Run) -> None:
    assert not recipes((r for r in run.records if r.get("flaws")), "solver", "reason", "flaws")


def test_a_solve_never_claims_a_smaller_residual_than_its_answer_has(run: Run) -> None:
    solved = [record for record in run.records if "solve" in record]
    assert solved
    assert not recipes((r for r in solved if r["solve"]["broken"]), "dtype", "solve")


def test_raises_only_where_gpytorch_cannot_answer_either(run: Run) -> None:
    raised = (r for r in run.records if r.get("exception", {}).get("gpytorch_answers"))
    assert not recipes(raised, "dtype", "exception")


@pytest.mark.parametrize("which", ["logdet", "mll"])
def test_statistical_intervals_contain_the_truth_as_often_as_they_say(run: Run, which: str) -> None:
    found = coverage(run.records, which)
    assert found
    short = {
        key: shares
        for key, inside in found.items()
        if len(inside) >= 20 and (shares := np.mean(inside, axis=0)[1]) < key[1] - run.slack
    }
    assert not short


def test_exact_answers_have_exact_gradients_in_float64(run: Run) -> None:
    exact = [r for r in run.records if r.get("solver") == "exact" and r["dtype"] == "float64"]
    errors = [r["gradient_error_of_terms"] for r in exact if "gradient_error_of_terms" in r]
    assert errors
    assert np.quantile(errors, 0.9) < 1e-6


def test_a_trajectory_can_be_run_again() -> None:
    first, second = ([_without_time(r) for r in run_trajectory(_SEED, 3, _SMALL)] for _ in range(2))
    assert first == second


def test_the_truth_of_a_known_spectrum_is_known() -> None:
    basis = torch.linalg.qr(torch.randn(80, 80, dtype=torch.float64))[0]
    spectrum = torch.logspace(2, -9, 80, dtype=torch.float64)
    targets = torch.randn(80, dtype=torch.float64)
    other = torch.randn(80, 80, dtype=torch.float64)
    kernel, noise = (basis * spectrum) @ basis.mT + 0.1 * (other - other.mT), torch.full((80,), 1e-3)
    truth = exact(kernel, noise, targets)
    assert isinstance(truth, Truth)
    levels = spectrum + noise
    assert truth.logdet == pytest.approx(float(levels.log().sum()), abs=1e-8)
    assert truth.inv_quad == pytest.approx(float(((basis.mT @ targets).square() / levels).sum()), rel=1e-9)
    assert isinstance(exact(kernel - 2e-3 * torch.eye(80), noise, targets), Indefinite)


def _without_time(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "seconds"}
