"""What a RangeFormer and the direct solver do with input at the edge of what they are for: right, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gp_rangeformer.rangeformer.arguments import batched
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.system.reason import Reason
from tests.rangeformer.test_rangeformer import matrices, random_model
from tests.system.systems import kernel_matrix, points, system, targets

N = 60


def right_hand_sides(m: int = 2) -> Tensor:
    return torch.randn(1, N, m, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def asked(a: Tensor, rhs: Tensor | None = None, **options: Any) -> Any:
    with torch.no_grad():
        return random_model()(DenseOperator(a), rhs, generator=torch.Generator().manual_seed(1), **options)[-1]


@pytest.mark.parametrize("factor", [1e200, 1e-200], ids=["huge", "tiny"])
def test_squares_that_overflow_or_vanish_change_no_answer(factor: float) -> None:
    a, rhs = matrices(N)[:1], right_hand_sides()
    plain = asked(a, rhs, tolerance=1e-3)
    loud = asked(a, factor * rhs, tolerance=1e-3)
    torch.testing.assert_close(loud.solution / factor, plain.solution, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loud.residual / factor, plain.residual, rtol=1e-6, atol=1e-12)
    scaled = asked(factor * a, rhs, tolerance=1e-3)
    shift = N * torch.tensor(factor, dtype=torch.float64).log()
    torch.testing.assert_close(scaled.logdet, plain.logdet + shift, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled.solution * factor, plain.solution, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_a_matrix_smaller_than_a_block_is_solved_exactly(n: int) -> None:
    a = matrices(n)[:1]
    rhs = torch.ones(1, n, 9, dtype=torch.float64)
    output = asked(a, rhs, tolerance=0.01, columns=3 * n)
    assert output.basis.shape[-1] == n
    torch.testing.assert_close(a @ output.solution, rhs, rtol=0, atol=1e-9)


def test_a_budget_below_a_block_is_kept() -> None:
    for columns in (1, 5, 8):
        output = asked(matrices(N)[:1], right_hand_sides(9), columns=columns)
        assert output.basis.shape[-1] == columns
        assert output.logdet.isfinite()


def test_a_right_hand_side_that_is_zero_is_solved_by_zero_and_asks_for_nothing() -> None:
    a, rhs = matrices(N)[:1], right_hand_sides()
    rhs[..., 0] = 0
    output = asked(a, rhs, tolerance=1e-6)
    assert (output.solution[..., 0] == 0).all()
    assert output.residual[..., 1].norm() <= 1e-6 * rhs[..., 1].norm()


def test_right_hand_sides_that_are_given_twice_are_solved_twice() -> None:
    a, rhs = matrices(N)[:1], right_hand_sides(1)
    output = asked(a, rhs.expand(-1, -1, 5), tolerance=1e-6)
    torch.testing.assert_close(a @ output.solution, rhs.expand(-1, -1, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [10, N])
def test_the_zero_matrix_has_the_logarithm_of_zero_and_no_nan(n: int) -> None:
    output = asked(torch.zeros(1, n, n).double(), torch.ones(1, n, 1).double())
    assert output.trace.item() == 0
    assert 0 <= output.lambda_max.item() < 1e-9
    assert output.logdet.item() == output.logdet_upper.item() == -torch.inf
    assert (output.solution == 0).all()
    assert (output.residual == 1).all()


@pytest.mark.parametrize(
    "a",
    [
        matrices(N)[:1] - 0.2 * torch.eye(N, dtype=torch.float64),
        -matrices(N)[:1],
        torch.eye(N, dtype=torch.float64)[None] * torch.linspace(-0.01, 1, N).double(),
    ],
    ids=["kernel less a fifth", "negative", "one negative entry"],
)
def test_an_indefinite_matrix_is_an_error_and_not_a_number(a: Tensor) -> None:
    with pytest.raises(torch.linalg.LinAlgError, match="negative entry on its diagonal, or a negative eigenvalue"):
        asked(a, right_hand_sides())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rhs": torch.full((N,), float("nan"))}, "NaN or infinite"),
        ({"rhs": torch.full((N,), float("inf"))}, "NaN or infinite"),
        ({"isotropic": 3}, "between 0 and the number of right-hand sides, 2, got 3"),
        ({"isotropic": -1}, "between 0 and"),
        ({"rhs": None, "isotropic": 1}, "between 0 and the number of right-hand sides, 0, got 1"),
        ({"rhs": torch.zeros(N, 2), "isotropic": 1}, "is zero: lower isotropic"),
        ({"tolerance": float("nan")}, "tolerance must be positive, got nan"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"rhs": None, "tolerance": 0.1}, "no right-hand sides: give loops or columns"),
        ({"rhs": torch.ones(N, 0), "tolerance": 0.1}, "no right-hand sides: give loops or columns"),
        ({"floor": torch.tensor(float("nan"))}, "finite and at least 0, got nan"),
        ({"floor": torch.tensor([-1.0])}, "finite and at least 0"),
        ({"codes": torch.ones(1, N - 1, 6)}, "must be 1 x 60 x 6, got 1 x 59 x 6"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    asking: dict[str, Any] = {"rhs": right_hand_sides(), **changes}
    with pytest.raises(ValueError, match=message):
        random_model()(DenseOperator(matrices(N)[:1]), asking.pop("rhs"), **asking)


def test_right_hand_sides_of_integers_are_refused_before_a_solution_is_rounded_to_them() -> None:
    with pytest.raises(ValueError, match=r"float32 or float64, got torch.int64"):
        batched(torch.ones(N, 2, dtype=torch.int64), DenseOperator(matrices(N)[0]))


def test_a_matrix_that_is_not_symmetric_is_refused() -> None:
    a = matrices(N)[0]
    a[3, 5] += 1e-3
    with pytest.raises(ValueError, match=r"\(i, j\) and \(j, i\) that are 0.001 apart"):
        DenseOperator(a)


def direct(n: int, columns: int = 1024, dtype: torch.dtype = torch.float64, noise: float = 0.05) -> Any:
    prepared = Direct(Certified(num_probes=8), columns=columns)
    return prepared.prepare(system(kernel_matrix(points(n, 2)), noise, dtype))


@pytest.mark.parametrize("n", [1, 2, 20])
def test_direct_answers_of_a_few_points_are_exact_and_called_so(n: int) -> None:
    asking = direct(n)
    y = targets(n)
    evaluation = asking.evaluate(y)
    dense = asking.system.to_dense()
    assert evaluation.solution.reason is Reason.CONVERGED
    torch.testing.assert_close(dense @ evaluation.solution.value, y, rtol=0, atol=1e-9)
    assert evaluation.logdet.value == pytest.approx(float(torch.logdet(dense)), abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_targets_that_are_not_finite_are_an_error_of_the_direct_solver(bad: float) -> None:
    y = targets(50)
    y[7] = bad
    for ask in (direct(50).solve, direct(50).evaluate):
        with pytest.raises(ValueError, match="right-hand side holds NaN or infinity"):
            ask(y)


@pytest.mark.parametrize("columns", [1, 5, 20])
def test_a_direct_range_smaller_than_its_probes_is_reported_as_what_it_is(columns: int) -> None:
    asking = direct(300, columns)
    y = targets(300)
    evaluation = asking.evaluate(y)
    dense = asking.system.to_dense()
    assert evaluation.solution.reason is Reason.DIRECT
    assert evaluation.logdet.rigorous.contains(float(torch.logdet(dense)))
    assert evaluation.logdet.rigorous.contains(evaluation.logdet.value)
    assert evaluation.solution.inv_quad[0].contains(float((y * torch.linalg.solve(dense, y)).sum()))


def test_the_gradient_of_a_direct_answer_is_that_of_its_solutions_and_probes() -> None:
    """Where the range is everything it is the exact one but for the choice of probes, whose mean it is taken over."""
    asking = direct(40)
    y = targets(40)
    evaluation = asking.evaluate(y)
    dense = asking.system.to_dense()
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    solution = torch.linalg.solve(dense, y)
    torch.testing.assert_close(
        evaluation.weight.dense(one, zero), -solution @ solution.mT, rtol=1e-6, atol=1e-6 * float(solution.norm()) ** 2
    )
    of_logdet = evaluation.weight.dense(torch.zeros(1, dtype=torch.float64), one.squeeze())
    torch.testing.assert_close(of_logdet, torch.linalg.inv(dense), rtol=1e-6, atol=1e-6 * float(dense.inverse().norm()))
