"""The quadrature of log|A|: exact where the range is everything, a mean over probes otherwise, never above what is
certain; and what answers where right-hand sides are probes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.quadrature import Quadrature, below
from gp_rangeformer.rangeformer.subspace import GrowingRange
from tests.rangeformer.test_rangeformer import matrices, random_model

N = 30


def everything(a: Tensor) -> GrowingRange:
    """The range of all columns."""
    grown, _ = GrowingRange.empty(a.diagonal(dim1=-2, dim2=-1)).grow(torch.eye(N).double().expand_as(a), a)
    return grown


def signs(p: int, n: int = N) -> Tensor:
    return torch.randn(1, n, p, generator=torch.Generator().manual_seed(2), dtype=torch.float64).sign()


def laplacian(side: int) -> Tensor:
    """Of a square grid: all its diagonal entries are 4."""
    line = 2 * torch.eye(side) - torch.diag(torch.ones(side - 1), 1) - torch.diag(torch.ones(side - 1), -1)
    return (torch.kron(line, torch.eye(side)) + torch.kron(torch.eye(side), line)).double()


@pytest.mark.parametrize("count", [1, 4])
def test_where_all_eigenpairs_are_found_the_trace_is_exact_whatever_the_probes(count: int) -> None:
    a = matrices(N)[:1]
    grown = everything(a)
    values, vectors = grown.ritz()
    quadrature = Quadrature.of(grown, values, vectors, torch.zeros_like(values), signs(count), converged=0.1)
    mean, error = quadrature.mean(values.log(), values[:, 0], N)
    torch.testing.assert_close(mean, torch.linalg.slogdet(a).logabsdet / N, rtol=1e-9, atol=1e-12)
    assert error.item() == 0


def test_where_none_is_found_it_is_the_mean_over_the_probes_with_its_standard_error() -> None:
    a = matrices(N)[:1]
    grown = everything(a)
    values, vectors = grown.ritz()
    z = signs(8)
    quadrature = Quadrature.of(grown, values, vectors, torch.full_like(values, torch.inf), z, converged=0.1)
    mean, error = quadrature.mean(values.log(), values[:, 0], N)
    logarithm = vectors @ torch.diag_embed(values.log()) @ vectors.mT
    each = (z * (logarithm @ z)).sum(-2) / N
    torch.testing.assert_close(mean, each.mean(-1))
    torch.testing.assert_close(error, each.std(-1, correction=0) / 8**0.5)


def test_a_gap_to_the_certain_bound_is_believed_as_far_as_it_exceeds_its_standard_error() -> None:
    bound = torch.zeros(4, dtype=torch.float64)
    estimate = torch.tensor([-1.0, -1.0, -1.0, 0.5], dtype=torch.float64)
    error = torch.tensor([0.0, 1.0, 1e3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        below(bound, estimate, error), torch.tensor([-1.0, -0.5, 0.0, 0.0]).double(), rtol=1e-5, atol=1e-5
    )
    assert below(bound, bound, torch.zeros_like(bound)).eq(0).all()


@pytest.mark.parametrize("seed", range(3))
def test_with_probes_the_log_determinant_is_the_quadrature_whatever_the_weights(seed: int) -> None:
    a = matrices(60)[:1]
    with torch.no_grad():
        outputs = random_model(seed)(DenseOperator(a), signs(8, 60), isotropic=8)
    assert all(torch.equal(output.logdet, output.logdet_quadrature) for output in outputs)


def test_probes_that_a_range_was_grown_to_solve_leave_no_bias_beyond_their_own_draw() -> None:
    """The range holds nearly all of 32 probes of a Laplacian: its Ritz pairs are no eigenpairs that know nothing of
    them. Within four standard errors of the mean of z' log(A) z over these probes."""
    a = laplacian(16)
    n = len(a)
    z = signs(32, n)
    with torch.no_grad():
        output = random_model()(DenseOperator(a), z, isotropic=32, tolerance=0.009, last_only=True)[-1]
    assert output.basis.shape[-1] < n
    values, vectors = torch.linalg.eigh(a)
    each = ((vectors.mT @ z[0]).square() * values.log().unsqueeze(-1)).sum(0) / n
    error = (output.logdet.item() - float(values.log().sum())) / n
    assert abs(error) < 4 * float(each.std()) / 32**0.5
