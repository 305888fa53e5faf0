from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gp_rangeformer.solvers.appended import appended_factor
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.solvers.factorisation import factorised
from gp_rangeformer.system.linear_system import LinearSystem
from tests.system.systems import kernel_matrix, points, system


def leading(whole: LinearSystem, k: int) -> LinearSystem:
    kernel = whole.columns(torch.arange(whole.size))
    return LinearSystem(kernel[:k, :k].contiguous(), whole.noise[:k])


def error_over_bound(whole: LinearSystem, factor: torch.Tensor) -> float:
    """|A - L L'| over n eps sqrt(A_ii A_jj), at most 1 for a factor that any order of Cholesky's sums gives: twice
    (n + 1) u |L| |L'| (Higham, Accuracy and Stability, theorem 10.3), u = eps / 2."""
    dense = whole.to_dense(torch.float64)
    scale = dense.diagonal().sqrt()
    bound = (len(dense) + 1) * torch.finfo(factor.dtype).eps * scale.outer(scale)
    return float(((dense - factor.double() @ factor.double().mT).abs() / bound).max())


@settings(deadline=None)  # a first example may compile
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    noise=st.sampled_from([1.0, 1e-2, 1e-3]),
)
def test_however_often_rows_are_appended_rounding_is_that_of_one_factorisation(
    sizes: list[int], dtype: torch.dtype, noise: float
) -> None:
    whole = system(kernel_matrix(points(sum(sizes), 2)), noise, dtype)
    first = factorised(leading(whole, sizes[0]), dtype)
    assert first is not None
    factor, k = first, sizes[0]
    for more in sizes[1:]:
        k += more
        grown = appended_factor(leading(whole, k), factor)
        assert grown is not None
        factor = grown
    assert factor.dtype == dtype
    assert not bool(factor.triu(1).any())
    assert error_over_bound(whole, factor) <= 1


def test_what_is_not_positive_definite_or_not_finite_has_no_factor() -> None:
    kernel = kernel_matrix(points(30, 2))
    first = factorised(system(kernel[:20, :20].contiguous(), 0.1), torch.float64)
    assert first is not None
    indefinite, broken = kernel.clone(), kernel.clone()
    indefinite[25, 25] = -1.0
    broken[25, :] = broken[:, 25] = torch.nan
    for wrong in (indefinite, broken):
        assert appended_factor(system(wrong, 0.1), first) is None


def test_a_float32_factor_is_not_appended_to_where_float64_is_asked_for() -> None:
    kernel = kernel_matrix(points(80, 1), "rbf", 2.0)
    calm, tiny = (system(kernel, noise, torch.float32) for noise in (0.1, 1e-5))
    for whole in (calm, tiny):
        first = factorised(leading(whole, 20), torch.float32)
        wide = factorised(leading(whole, 20), torch.float64)
        assert first is not None
        assert wide is not None
        narrow = Exact().append(whole, first)
        assert (narrow is None) == (whole is tiny)
        found = Exact().append(whole, wide)
        assert found is not None
        assert found.notes() == ["factorised in float64"]
        assert found.logdet().value == pytest.approx(float(torch.logdet(whole.to_dense(torch.float64))), rel=1e-9)
