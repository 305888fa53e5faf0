"""The pretrained network on a LinearSystem: the same answers as on a stored matrix, through products alone."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer.rangeformer.answer import SystemOperator, answer, pretrained
from gp_rangeformer.rangeformer.operator import DenseOperator
from tests.system.systems import kernel_matrix, points, system, targets

NOISE = 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_answer_is_that_for_the_stored_matrix(dtype: torch.dtype) -> None:
    linear_system = system(kernel_matrix(points(60, 2)), NOISE, dtype)
    y = targets(60, m=3).to(dtype)
    found = answer(linear_system, y, loops=4, seed=7)
    model = pretrained("base", dtype, linear_system.device)
    operator = DenseOperator(linear_system.to_dense())
    floor = torch.tensor([NOISE], dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        expected = model(operator, y.unsqueeze(0), loops=4, floor=floor, generator=generator)[-1]
    assert expected.solution is not None
    assert found.solution.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(found.solution, expected.solution[0], rtol=tolerance, atol=tolerance)
    assert found.logdet == pytest.approx(float(expected.logdet), rel=tolerance)


def test_a_call_costs_one_pass_and_one_more_per_loop() -> None:
    linear_system = system(kernel_matrix(points(60, 2)), NOISE)
    config = pretrained("base", torch.float64, linear_system.device).config
    linear_system.take_counts()
    answer(linear_system, targets(60, m=5), loops=3)
    assert linear_system.take_counts() == (1 + 3, min(60, config.sketch + 3 * max(config.width, 5)))


def test_without_right_hand_sides_nothing_is_solved() -> None:
    linear_system = system(kernel_matrix(points(60, 2)), NOISE)
    found = answer(linear_system, targets(60)[:, :0], loops=2)
    assert found.solution.shape == (60, 0)
    assert torch.tensor(found.logdet).isfinite()


def test_the_operator_is_kernel_plus_noise() -> None:
    linear_system = system(kernel_matrix(points(20, 2)), torch.linspace(0.1, 1, 20))
    operator = SystemOperator(linear_system)
    block = targets(20, m=3).unsqueeze(0)
    torch.testing.assert_close(operator.matmul(block)[0], linear_system.to_dense() @ block[0])
    torch.testing.assert_close(operator.diagonal()[0], linear_system.to_dense().diagonal())
