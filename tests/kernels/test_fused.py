"""Values and gradients by tiles against GPyTorch's own and, where GPyTorch rounds, against coordinate differences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, RQKernel, ScaleKernel

from gp_rangeformer import settings
from gp_rangeformer.kernels.tiles import tile_size
from tests.kernels.market import (
    DIM,
    KERNELS,
    by_differences,
    by_host,
    by_thin_tiles,
    by_tiles,
    factors,
    largest_difference,
    make,
    points,
    recognised,
)

TILE = tile_size(torch.device("cpu"))
# With gradients in play GPyTorch has exp(-1e-8) on the diagonal of these instead of 1, and its gradient the like.
ROUNDED_BY_HOST = {"matern12_ard", "matern12_active"}
EXACT = sorted(KERNELS.keys() - ROUNDED_BY_HOST)

PROFILES = {
    0.5: lambda r: (-r).exp(),
    1.5: lambda r: (1 + math.sqrt(3) * r) * (-math.sqrt(3) * r).exp(),
    2.5: lambda r: (1 + math.sqrt(5) * r + 5 / 3 * r**2) * (-math.sqrt(5) * r).exp(),
}


@pytest.fixture(autouse=True, params=[True, False], ids=["compiled", "tensors"])
def made_both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with settings.fused_kernels("compiled" if request.param else "tensors"):
        yield


def dense_weight(n: int) -> torch.Tensor:
    left, right, diagonal = factors(n)
    return left @ right.mT + diagonal.diag()


def matern(nu: float, lengthscale: float, dtype: torch.dtype = torch.float64) -> MaternKernel:
    kernel = MaternKernel(nu, ard_num_dims=DIM).to(dtype)
    kernel.lengthscale = lengthscale * torch.tensor([1.0, 1.3, 0.7])
    return kernel


@pytest.mark.parametrize("name", EXACT)
def test_values_and_gradients_are_gpytorchs(name) -> None:
    kernel, x, weight = make(name), points(300), dense_weight(300)
    ours, theirs = by_tiles(kernel, x, weight), by_host(kernel, x, weight)
    torch.testing.assert_close(ours.kernel, theirs.kernel, rtol=0, atol=1e-12)
    assert largest_difference(ours.gradients, theirs.gradients) < 1e-10


@pytest.mark.parametrize("name", sorted(set(EXACT) - {"matern12"}))
def test_gradients_reach_the_inputs(name) -> None:
    kernel, x, weight = make(name), points(300), dense_weight(300)
    ours, theirs = by_tiles(kernel, x, weight, inputs=True), by_host(kernel, x, weight, inputs=True)
    assert largest_difference(ours.gradients, theirs.gradients) < 1e-10


@pytest.mark.parametrize("nu", PROFILES)
def test_matern_kernels_are_those_of_coordinate_differences(nu) -> None:
    kernel, x, weight = matern(nu, 0.8), points(300), dense_weight(300)
    ours = by_tiles(kernel, x, weight, inputs=True)
    leaf, lengthscale = x.clone().requires_grad_(), kernel.lengthscale.detach().requires_grad_()
    reference = by_differences(leaf, lengthscale, PROFILES[nu])
    g_x, g_lengthscale = torch.autograd.grad(reference, (leaf, lengthscale), weight)
    torch.testing.assert_close(ours.kernel, reference.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.gradients["x"], g_x, rtol=1e-10, atol=1e-10 * float(g_x.abs().max()))
    (g_raw,) = torch.autograd.grad(kernel.lengthscale, list(kernel.parameters()), g_lengthscale)
    torch.testing.assert_close(ours.gradients["raw_lengthscale"], g_raw, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nu", PROFILES)
def test_entries_of_near_points_far_from_the_middle_are_at_rounding_level(nu, dtype) -> None:
    """Coordinates reach 300 length-scales; float32's |z|^2 eps, 0.01, would show in every entry."""
    near = points(300, torch.float64)
    x = torch.cat([near, near + 0.002 * points(300, torch.float64, seed=1)]).to(dtype)
    fused = recognised(matern(nu, 0.01, dtype), x)
    z = fused.arguments[0].detach().to(dtype).double()  # as the tiles see them
    exact = PROFILES[nu]((z[:, None] - z[None]).square().sum(-1).sqrt())
    # Distances are off by eps64 |z|^2 / r; entries, at most 1, are rounded a few times.
    off = torch.finfo(torch.float64).eps * z.square().sum(-1).max() / 0.01
    torch.testing.assert_close(
        fused.dense().detach().double(), exact, rtol=0, atol=float(off) + 8 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["matern12", "matern52", "rq", "sum_of_products"])
def test_duplicates_far_from_the_middle_are_coincident(name, dtype) -> None:
    distinct = 300 * points(150, dtype)
    matrix = recognised(make(name, dtype), torch.cat([distinct, distinct])).dense()
    assert torch.equal(matrix[:150, 150:].diagonal(), matrix.diagonal()[:150])


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_thin_factors_give_the_gradient_of_their_dense_product(name) -> None:
    kernel, x = make(name), points(300)
    left, right, diagonal = factors(300)
    dense = by_tiles(kernel, x, left @ right.mT + diagonal.diag())
    assert largest_difference(by_thin_tiles(kernel, x, left, right, diagonal), dense.gradients) < 1e-10


def test_a_weight_need_not_be_symmetric() -> None:
    kernel, x = make("scale"), points(40)
    weight = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float((weight - weight.mT).abs().max()) > 1
    ours, theirs = by_tiles(kernel, x, weight), by_host(kernel, x, weight)
    assert largest_difference(ours.gradients, theirs.gradients) < 1e-10


@pytest.mark.parametrize("n", [1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 100])
def test_every_size_is_cut_into_tiles_that_fit(n) -> None:
    kernel, x, weight = make("sum_of_products"), points(n), dense_weight(n)
    ours, theirs = by_tiles(kernel, x, weight), by_host(kernel, x, weight)
    torch.testing.assert_close(ours.kernel, theirs.kernel, rtol=0, atol=1e-12)
    for name, gradient in ours.gradients.items():
        torch.testing.assert_close(gradient, theirs.gradients[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rq", "matern12_ard", "product_of_sums"])
def test_the_matrix_is_symmetric_to_the_last_bit_with_an_equal_diagonal(name, dtype) -> None:
    kernel, x = make(name, dtype), points(TILE + 50, dtype)
    matrix = recognised(kernel, x).dense()
    assert torch.equal(matrix, matrix.mT)
    torch.testing.assert_close(
        matrix.diagonal(), kernel(x, diag=True).to(dtype), rtol=8 * torch.finfo(dtype).eps, atol=0
    )
    assert torch.equal(matrix.diagonal(), matrix[0, 0].expand(len(x)))


def float32_errors(name: str, x: torch.Tensor) -> list[tuple[float, float]]:
    """(by tiles, GPyTorch's) errors against GPyTorch in float64 at the same parameters: of K, and of every gradient
    relative to its sum without cancellation, the one with weights |W|."""
    weight = dense_weight(len(x)).float()
    kernel, exact = make(name, torch.float32), make(name, torch.float32).double()
    reference, sizes = (by_host(exact, x.double(), w) for w in (weight.double(), weight.double().abs()))
    columns = []
    for by in (by_tiles, by_host):
        found = by(kernel, x, weight)
        errors = [float((found.kernel - reference.kernel).abs().max())]
        for key, gradient in reference.gradients.items():
            errors.append(float((found.gradients[key] - gradient).norm() / sizes.gradients[key].norm()))
        columns.append(errors)
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_float32_is_at_rounding_level_or_no_worse_than_gpytorchs(name) -> None:
    for error, their_error in float32_errors(name, points(300).float()):
        assert error < max(their_error, 3e-6)


@pytest.mark.parametrize("name", ["rbf_ard", "matern32_ard", "periodic", "rq_ard"])
def test_a_common_offset_of_the_inputs_costs_no_more_than_in_gpytorch(name) -> None:
    for error, their_error in float32_errors(name, (points(300) + 1e4).float()):
        assert error < max(their_error, 3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nu", PROFILES)
def test_coincident_points_give_the_gradient_of_coordinate_differences(nu, dtype) -> None:
    """|z - z'|^2 of two equal points is zero up to eps |z|^2, so r up to eps^1/2 |z|: what the tolerances allow."""
    x = points(100).to(dtype).repeat(3, 1)
    weight = dense_weight(300).to(dtype)
    kernel = matern(nu, 0.8, dtype)
    ours = by_tiles(kernel, x, weight, inputs=True)
    leaf, lengthscale = x.double().requires_grad_(), kernel.lengthscale.detach().double().requires_grad_()
    reference = by_differences(leaf, lengthscale, PROFILES[nu])
    g_x, _ = torch.autograd.grad(reference, (leaf, lengthscale), weight.double())
    resolution = torch.finfo(dtype).eps ** 0.5
    assert float((ours.kernel - reference.detach()).abs().max()) < 5 * resolution
    assert float((ours.gradients["x"] - g_x).norm() / g_x.norm()) < 5 * resolution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_points_do_not_round_the_slope_at_zero_into_a_gradient(dtype) -> None:
    """That of Matern-1/2 is infinite, and was summed for a point before what it meets cancelled: off by 1 to 15 %."""
    x = points(40).to(dtype).repeat(5, 1)
    weight = dense_weight(200).to(dtype)
    kernel = matern(0.5, 0.8, dtype)
    ours = by_tiles(kernel, x, weight)
    lengthscale = kernel.lengthscale.detach().double().requires_grad_()
    reference = by_differences(x.double(), lengthscale, PROFILES[0.5])
    (g_lengthscale,) = torch.autograd.grad(reference, lengthscale, weight.double())
    constraint: Any = kernel.raw_lengthscale_constraint
    slope = torch.autograd.functional.jacobian(constraint.transform, kernel.raw_lengthscale)
    expected = g_lengthscale.flatten() * slope.reshape(DIM, DIM).diagonal().double()
    found = ours.gradients["raw_lengthscale"].flatten().double()
    # 40,000 pairs of rounded distances, whose errors add up as random numbers do.
    assert float((found - expected).norm() / expected.norm()) < 200 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_points_too_far_apart_to_see_each_other_leave_the_diagonal(name, dtype) -> None:
    """The kernels that decay: what underflows in GPyTorch is below 1e-22 here, also times r^2 in the gradients."""
    kernel, x = make(name, dtype), 1e4 * points(60, dtype)
    weight = dense_weight(60).to(dtype)
    ours, theirs = by_tiles(kernel, x, weight), by_host(kernel, x, weight)
    if float((theirs.kernel - theirs.kernel.diagonal().diag()).abs().max()) == 0:
        off_diagonal = ours.kernel - ours.kernel.diagonal().diag()
        assert float(off_diagonal.abs().max()) < 1e-22
        scales = [gradient for key, gradient in ours.gradients.items() if key.endswith("raw_lengthscale")]
        assert all(float(gradient.abs().max()) < 1e-10 for gradient in scales)
    assert ours.kernel.isfinite().all()
    assert all(bool(gradient.isfinite().all()) for gradient in ours.gradients.values())


def test_a_heavy_tail_is_right_at_any_distance() -> None:
    kernel, exact = RQKernel(), RQKernel()
    kernel.alpha = exact.alpha = 0.02
    exact.double()
    x = torch.tensor([[0.0], [1e15], [-2e15]])
    found, expected = recognised(kernel, x).dense(), exact(x.double()).to_dense()
    assert float(expected.detach().min()) > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["rbf_ard", "matern32_ard", "matern52_ard", "rq", "periodic_ard", "sum_of_products"])
def test_second_derivatives_are_gpytorchs(name) -> None:
    kernel, x = make(name), points(25)
    # Without ARD, and without a gradient for the inputs, GPyTorch's own backward cannot be differentiated.
    x.requires_grad_()
    weight = dense_weight(25)
    parameters = [x, *kernel.parameters()]
    found = []
    for matrix in (recognised(kernel, x).dense(), kernel(x).to_dense()):
        first = torch.autograd.grad((matrix.square() * weight).sum(), parameters, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), parameters)
        found.append({str(index): gradient for index, gradient in enumerate(second)})
    assert largest_difference(*found) < 1e-9


def test_gradients_pass_on_to_what_made_the_inputs() -> None:
    """A deep kernel: features of a network as inputs."""
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, DIM)).double()
    kernel, raw, weight = make("scale"), points(80, d=5), dense_weight(80)
    found = []
    for evaluate in (lambda z: recognised(kernel, z).dense(), lambda z: kernel(z).to_dense()):
        found.append(torch.autograd.grad(evaluate(network(raw)), list(network.parameters()), weight))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # the last bias moves all inputs: zero
    assert all(float(gradient.abs().max()) > 1 for gradient in found[0][:3])


def test_a_factor_that_underflows_does_not_spoil_the_gradient_of_the_others() -> None:
    near, far = RBFKernel(active_dims=(0,)), RBFKernel(active_dims=(1,))
    kernel = ScaleKernel(near * far).double()
    x = points(60, d=2) * torch.tensor([1.0, 300.0], dtype=torch.float64)
    weight = dense_weight(60)
    ours, theirs = by_tiles(kernel, x, weight), by_host(kernel, x, weight)
    for name, gradient in ours.gradients.items():
        # |z|^2 is 1e5, so the squared distances of the few close pairs carry an error of 1e-11.
        torch.testing.assert_close(gradient, theirs.gradients[name], rtol=1e-8, atol=1e-12, msg=name)


def test_a_nan_among_the_inputs_is_seen_in_the_matrix() -> None:
    x = points(20)
    x[3, 1] = torch.nan
    assert recognised(make("scale"), x).dense().isnan().any()
