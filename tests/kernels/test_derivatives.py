"""Derivatives of K times a vector, for every parameter, against autograd through plain tensor operations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gp_rangeformer import settings
from gp_rangeformer.kernels.derivatives import parameter_moves
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.tensor.plain import plain
from tests.kernels.market import KERNELS, make, points, recognised

N = 300


@pytest.fixture(autouse=True, params=[True, False], ids=["compiled", "tensors"])
def made_both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with settings.fused_kernels("compiled" if request.param else "tensors"):
        yield


def by_autograd(fused: FusedKernel, vector: torch.Tensor) -> torch.Tensor:
    """Every column by a forward derivative of plain operations, in float64."""
    weights = torch.zeros(fused.n, dtype=torch.float64, requires_grad=True)
    product = plain(fused.expression, fused.arguments, fused.n, torch.float64) @ vector.double()
    gradients = torch.autograd.grad(product, fused.parameters, weights, create_graph=True, materialize_grads=True)
    columns = []
    for number in torch.cat([gradient.reshape(-1) for gradient in gradients]):
        (column,) = torch.autograd.grad(number, weights, retain_graph=True, materialize_grads=True)
        columns.append(column)
    return torch.stack(columns, 1)


def vector_of(n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_products_with_every_derivative(name) -> None:
    fused, vector = recognised(make(name), points(N)), vector_of(N, torch.float64)
    found, expected = fused.parameter_products(vector), by_autograd(fused, vector)
    assert found.shape == expected.shape
    # Central differences with a relative step of 1e-4 leave its square, of third derivatives of a few units.
    compiled = settings.fused_kernels.compiled()
    assert (found - expected).abs().max() <= (1e-11 if compiled else 1e-6) * expected.abs().max()


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_float32(name) -> None:
    vector = vector_of(N, torch.float32)
    found = recognised(make(name, torch.float32), points(N, torch.float32)).parameter_products(vector)
    expected = by_autograd(recognised(make(name), points(N)), vector)
    compiled = settings.fused_kernels.compiled()
    # N terms of either sign, each to a few units of rounding; differences lose the step, 1e-2, and keep its square.
    assert (found - expected).abs().max() <= (1e-4 if compiled else 1e-2) * expected.abs().max()


def test_parameters_without_a_gradient_move_nothing() -> None:
    kernel = make("scale")
    kernel.raw_outputscale.requires_grad_(False)
    fused, vector = recognised(kernel, points(N)), vector_of(N, torch.float64)
    moves = parameter_moves(fused.expression, fused.arguments, fused.parameters)
    assert [len(own) for own in moves] == [0, 1, 1, 1]
    products = fused.parameter_products(vector)
    assert not products[:, 0].any()
    assert products[:, 1:].any(0).all()


def test_coincident_points_and_any_number_of_threads() -> None:
    x = points(N)
    x[1] = x[0]
    fused, vector = recognised(make("matern12_ard"), x), vector_of(N, torch.float64)
    found = fused.parameter_products(vector)
    assert found.isfinite().all()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(recognised(make("matern12_ard"), x).parameter_products(vector), found)
    finally:
        torch.set_num_threads(threads)
