"""Points so far apart that squared distances leave the range of a kernel or of their dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.expression import Kind, Stationary
from gp_rangeformer.kernels.fused import FusedKernel
from tests.kernels.market import points


@pytest.fixture(autouse=True, params=["compiled", "tensors"])
def made_both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with settings.fused_kernels(request.param):
        yield


def tail(alpha: float, distance: float, dtype: torch.dtype) -> tuple[float, Tensor]:
    """A rational quadratic at ``distance``, and its derivative for alpha."""
    x = torch.tensor([[0.0], [distance]], dtype=dtype)
    shape = torch.tensor([alpha], dtype=dtype, requires_grad=True)
    matrix = FusedKernel(Stationary("rq"), x, (torch.ones(1, 1, dtype=dtype), shape)).dense()
    return float(matrix.detach()[0, 1]), torch.autograd.grad(matrix[0, 1], shape)[0]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 3.7, 20.0])
def test_the_tail_of_a_rational_quadratic_is_right_to_the_end_of_float64(alpha: float) -> None:
    """A power between -300 and -1100 of e was taken for one of a normal number: -1e306."""
    for distance in (1e20, 1e43, 1e78, 1e103, 1e141, 1e153):
        log = math.log1p((distance / math.sqrt(2 * alpha)) ** 2)
        found, slope = tail(alpha, distance, torch.float64)
        assert found == pytest.approx(math.exp(-alpha * log), rel=1e-12, abs=1e-30)
        assert float(slope) == pytest.approx(math.exp(-alpha * log) * (1 - log), rel=1e-12, abs=1e-30)


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 3e19), (torch.float64, 1e155)])
@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.7, 2.0])
def test_a_tail_beyond_its_dtype_is_held_where_that_ends(alpha: float, dtype: torch.dtype, distance: float) -> None:
    found, slope = tail(alpha, distance, dtype)
    last = torch.finfo(dtype).max / 4
    assert found == pytest.approx(last**-alpha, rel=1e-4, abs=1e-25)
    assert bool(slope.isfinite())


@pytest.mark.parametrize("kind", ["rbf", "matern12", "matern32", "matern52"])
def test_float32_points_whose_squares_are_infinite_are_far_apart(kind: Kind) -> None:
    x = torch.tensor([[0.0], [-1e30], [3e30], [1e25]])
    assert torch.equal(FusedKernel(Stationary(kind), x, (torch.ones(1, 1),)).dense().round(), torch.eye(4))


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e17), (torch.float64, 1e90)])
@pytest.mark.parametrize("kind", ["rbf", "matern12", "matern32", "matern52", "rq"])
def test_pairs_that_do_not_see_each_other_have_no_gradient(kind: Kind, dtype: torch.dtype, unit: float) -> None:
    """What is left of the kernel where it is held, times a distance that is not, gave a length-scale 1e9."""
    x = torch.tensor([[0.0], [1.0], [-2.0], [5.0]], dtype=dtype) * unit
    lengthscale = torch.ones(1, 1, dtype=dtype, requires_grad=True)
    shape = [torch.full((1,), 2.0, dtype=dtype)] if kind == "rq" else []
    matrix = FusedKernel(Stationary(kind), x, (lengthscale, *shape)).dense()
    (gradient,) = torch.autograd.grad(matrix.sum(), lengthscale)
    assert abs(float(gradient)) < 1e-25


@pytest.mark.parametrize("far", [300.0, 1e4, 1e6])
@pytest.mark.parametrize("kind", ["rbf", "matern32", "matern52"])
def test_rounding_of_gradients_far_from_the_middle_is_that_of_coordinates(kind: Kind, far: float) -> None:
    """Of near and equal points. As 2 (z_i sum_j S_ij - sum_j S_ij z_j) in float32 it was that of their squares."""
    x = (8 * points(150, torch.float32)[:, :1]).round() / 8  # of which float32 has all differences
    x[100:] += far
    weight = torch.randn(150, 150, generator=torch.Generator().manual_seed(0))
    lengthscale = torch.ones(1, 1, requires_grad=True)
    matrix = FusedKernel(Stationary(kind), x, (lengthscale,)).dense()
    (found,) = torch.autograd.grad(matrix, lengthscale, weight)
    r = (x - x.mT).double().abs()
    s3, s5 = 3**0.5 * r, 5**0.5 * r
    slopes = {  # for the length-scale
        "rbf": r.square() * (-0.5 * r.square()).exp(),
        "matern32": s3.square() * (-s3).exp(),
        "matern52": s5.square() * (1 + s5) * (-s5).exp() / 3,
    }
    expected = (weight.double() * slopes[kind]).sum()
    off = abs(float(found) - float(expected)) / float((weight.abs() * slopes[kind]).sum())
    assert off < 1e-6 + torch.finfo(torch.float32).eps / 2 * far
