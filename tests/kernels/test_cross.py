"""The kernel matrix between two sets of points: values, products and gradients, against GPyTorch in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gp_rangeformer import settings
from gp_rangeformer.kernels.cross import CrossKernel
from tests.kernels.market import KERNELS, make, points, recognised

N, T = 130, 41


@pytest.fixture(autouse=True, params=[True, False], ids=["compiled", "tensors"])
def made_both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with settings.fused_kernels("compiled" if request.param else "tensors"):
        yield


def two_sets(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """No point is in both: what GPyTorch and tensor operations say of coincident ones is rounded."""
    return points(N, dtype), 1.5 * points(N + T, dtype)[N:] + 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_is_the_hosts_matrix(name: str, dtype: torch.dtype) -> None:
    x, others = two_sets(dtype)
    kernel = make(name).to(dtype)
    cross = CrossKernel(recognised(kernel, x).expression, x, others, recognised(kernel, x).parameters)
    with torch.no_grad():
        expected = kernel.double()(others.double(), x.double()).to_dense()
        prior = kernel(x[:1].double()).to_dense().squeeze()
    tolerance = 300 * torch.finfo(dtype).eps  # of squared distances from norms, by tensor operations, at |z|^2 of 60
    torch.testing.assert_close(cross.dense().double(), expected, rtol=tolerance, atol=tolerance)
    assert cross.prior().double() == pytest.approx(float(prior), rel=tolerance)
    vectors = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sizes = expected.abs() @ vectors.abs()
    assert ((cross.product(vectors) - expected @ vectors).abs() <= tolerance * sizes + 1e-12).all()


@pytest.mark.parametrize("name", ["scale", "sum_of_products", "periodic_ard", "rq"])
def test_gradients_of_a_product(name: str) -> None:
    x, others = two_sets(torch.float64)
    others.requires_grad_()
    kernel = make(name).double()
    fused = recognised(kernel, x)
    vectors = torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(T, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = [others, *kernel.parameters()]
    ours = CrossKernel(fused.expression, x, others, fused.parameters).product(vectors)
    found = torch.autograd.grad((ours * weights).sum(), wanted, retain_graph=True)
    again = torch.autograd.grad((ours * weights).sum(), wanted, create_graph=True)
    expected = torch.autograd.grad((kernel(others, x).to_dense() @ vectors * weights).sum(), wanted)
    for one, other, plain in zip(found, expected, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(plain, other, rtol=1e-8, atol=1e-8)


def test_a_far_point_costs_the_others_nothing() -> None:
    x, others = two_sets(torch.float32)
    kernel = make("scale", torch.float32)
    fused = recognised(kernel, x)
    alone = CrossKernel(fused.expression, x, others, fused.parameters).dense()
    far = torch.cat([others, torch.full((1, x.shape[1]), 1e6)])
    beside = CrossKernel(fused.expression, x, far, fused.parameters).dense()
    assert torch.equal(beside[:T], alone)
    assert (beside[T] < 1e-20).all()


@pytest.mark.parametrize("name", ["matern12", "matern32", "rbf"])
def test_coincident_points(name: str) -> None:
    """Exactly the variance where differences are taken; from norms, by tensor operations, r is off by the root of their
    rounding."""
    x = points(N, torch.float32)
    kernel = make(name, torch.float32)
    fused = recognised(kernel, x)
    cross = CrossKernel(fused.expression, x, x[:T].clone(), fused.parameters)
    found = cross.dense().diagonal()
    if settings.fused_kernels.compiled():
        assert torch.equal(found, cross.prior().expand(T))
    else:
        norms = fused.arguments[0].detach().square().sum(-1).max()
        off = float(4 * torch.finfo(torch.float32).eps * norms) ** 0.5
        assert ((found - cross.prior()).abs() <= cross.prior() * off).all()
