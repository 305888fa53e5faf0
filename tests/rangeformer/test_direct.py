"""The direct solver measures whatever a network answers: here networks that are right, wrong, and made of noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_rangeformer.rangeformer.answer import Answer
from gp_rangeformer.rangeformer.direct import Direct, DirectPrepared
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.system.systems import kernel_matrix, points, system, targets

NOISE = 0.05


def oracle(linear_system: LinearSystem, rhs: Tensor) -> Answer:
    """The truth, and the best range of rank 10."""
    dense = linear_system.to_dense()
    _, vectors = torch.linalg.eigh(dense)
    return Answer(torch.linalg.solve(dense, rhs), float(torch.logdet(dense)), vectors[:, -10:])


def half_right(linear_system: LinearSystem, rhs: Tensor) -> Answer:
    truth = oracle(linear_system, rhs)
    return Answer(0.5 * truth.solution, truth.logdet, truth.range)


def boastful(linear_system: LinearSystem, rhs: Tensor) -> Answer:
    """Right about the solution; its log determinant is below what its own range proves."""
    truth = oracle(linear_system, rhs)
    return Answer(truth.solution, truth.logdet - 1000.0, truth.range)


def broken(linear_system: LinearSystem, rhs: Tensor) -> Answer:
    return Answer(torch.zeros_like(rhs), 0.0, torch.full((linear_system.size, 3), float("nan"), dtype=rhs.dtype))


def prepared(network: object) -> DirectPrepared:
    linear_system = system(kernel_matrix(points(80, 2)), NOISE)
    return Direct(Certified(num_probes=64), network).prepare(linear_system)  # type: ignore[arg-type]


def test_a_right_answer_is_found_right() -> None:
    direct = prepared(oracle)
    y = targets(80)
    evaluation = direct.evaluate(y)
    dense = direct.system.to_dense()
    assert evaluation.solution.reason is Reason.CONVERGED
    assert evaluation.residual < 1e-9
    assert evaluation.logdet is not None
    assert evaluation.logdet.rigorous.contains(evaluation.logdet.value)
    exact = float((y * torch.linalg.solve(dense, y)).sum())
    assert float(evaluation.inv_quad) == pytest.approx(exact)
    assert evaluation.solution.inv_quad[0].contains(exact)


def test_a_wrong_solution_is_let_through_with_its_true_residual_and_an_interval_that_holds() -> None:
    direct = prepared(half_right)
    y = targets(80)
    solution = direct.solve(y)
    dense = direct.system.to_dense()
    torch.testing.assert_close(solution.value, 0.5 * torch.linalg.solve(dense, y))
    assert solution.reason is Reason.DIRECT
    assert float(solution.residual) == pytest.approx(0.5, abs=1e-6)
    assert solution.inv_quad[0].contains(float((y * torch.linalg.solve(dense, y)).sum()))


def test_a_log_determinant_outside_its_certain_interval_is_let_through_and_said_to_be() -> None:
    evaluation = prepared(boastful).evaluate(targets(80))
    assert evaluation.logdet is not None
    assert not evaluation.logdet.rigorous.contains(evaluation.logdet.value)
    assert evaluation.solution.reason is Reason.DIRECT
    assert evaluation.residual < 1e-9


def test_a_range_of_nan_leaves_no_interval_and_no_exception() -> None:
    evaluation = prepared(broken).evaluate(targets(80))
    assert evaluation.solution.reason is Reason.DIRECT
    assert evaluation.logdet is not None
    assert evaluation.logdet.rigorous.lower == -float("inf")
    assert evaluation.solution.inv_quad[0].upper == float("inf")


def test_the_gradient_is_that_of_the_networks_solutions() -> None:
    y = targets(80)
    evaluation = prepared(half_right).evaluate(y)
    one = torch.ones(1, dtype=torch.float64)
    x = evaluation.solution.value
    torch.testing.assert_close(evaluation.weight.dense(one, torch.tensor(0.0).double()), -x @ x.mT)


def test_without_right_hand_sides_there_is_still_a_log_determinant() -> None:
    direct = prepared(oracle)
    assert direct.logdet().value == pytest.approx(float(torch.logdet(direct.system.to_dense())))
