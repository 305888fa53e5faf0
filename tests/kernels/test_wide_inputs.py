"""Triton kernels for inputs of many dimensions: compiled where there is a GPU, else interpreted, else not at all."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch

from gp_rangeformer.kernels.tiles import Block

N = 70  # no multiple of a tile
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="without Triton")


@pytest.mark.parametrize("dimensions", [1, 64, 127, 128, 256, 784])
def test_values_products_and_gradients_are_those_of_the_dense_matrix(
    dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    tiles = importlib.import_module("gp_rangeformer.kernels.gpu.tiles")
    products = importlib.import_module("gp_rangeformer.kernels.gpu.products")
    generator = torch.Generator().manual_seed(dimensions)
    x, left, right = (torch.randn(N, k, generator=generator).to(device) for k in (dimensions, 4, 4))
    x = x / dimensions**0.5
    wide = x.double().requires_grad_()
    square = (wide.unsqueeze(0) - wide.unsqueeze(1)).square().sum(-1)
    dense = torch.exp(-0.5 * square)
    weight = left.double() @ right.double().mT
    (weight * dense).sum().backward()

    value = torch.empty(N, N, device=device)
    tiles.TritonTiles("rbf", x, None, 0.0).value(Block(slice(0, N), slice(0, N)), value)
    torch.testing.assert_close(value.double(), dense.detach(), rtol=0, atol=2e-6)
    triton = products.TritonProducts("rbf", x, None, 0.0)
    near = dense.detach() @ right.double()
    torch.testing.assert_close(triton.matmul(right, slice(0, N)).double(), near, rtol=1e-5, atol=2e-5)
    sums = triton.pull(left, right, slice(0, N))
    # dk/dq = -k/2, and z_i moves q_ij by 2 (z_i - z_j).
    gradient = -(sums.slopes[:, -1:] * wide.detach() - sums.slopes[:, :-1])
    assert wide.grad is not None
    torch.testing.assert_close(gradient, wide.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums.value, (weight * dense.detach()).sum(), rtol=1e-5, atol=1e-3)
