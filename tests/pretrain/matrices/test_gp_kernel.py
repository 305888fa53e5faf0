"""Kernel matrices are those of the named kernels, on every point distribution."""

from __future__ import annotations

import gpytorch
import pytest
import torch

from pretrain.matrices import (
    GPKernel,
)
from pretrain.matrices.gp_kernel import PROFILES, on_circles
from tests.pretrain.matrices.measures import COUNT, diagonals, off_diagonal, relative, seeded


@pytest.mark.parametrize("kind", PROFILES)
def test_every_kernel_is_positive_semidefinite_with_unit_diagonal_under_the_noise(kind: str):
    matrices = GPKernel(kernels=(kind,)).draw(COUNT, 25, seeded())
    noise = diagonals(matrices) - 1
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise))
    assert noise.min() > 0.99e-4
    assert noise.max() < 1
    assert torch.linalg.eigvalsh(matrices - torch.diag_embed(noise)).min() > -1e-10


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("rbf", gpytorch.kernels.RBFKernel()),
        ("matern12", gpytorch.kernels.MaternKernel(nu=0.5)),
        ("matern32", gpytorch.kernels.MaternKernel(nu=1.5)),
        ("matern52", gpytorch.kernels.MaternKernel(nu=2.5)),
        ("rq", gpytorch.kernels.RQKernel()),
    ],
)
def test_kernel_profiles_agree_with_gpytorch(kind: str, kernel: gpytorch.kernels.Kernel):
    kernel = kernel.double()
    kernel.lengthscale = torch.tensor(1.0)
    if isinstance(kernel, gpytorch.kernels.RQKernel):
        kernel.alpha = torch.tensor(0.7, dtype=torch.float64)
    r = torch.linspace(0, 4, 30).double()
    expected = kernel(torch.zeros(1, 1).double(), r[:, None]).to_dense()
    shape = torch.full((1, 1, 1), 0.7).double()
    torch.testing.assert_close(PROFILES[kind](r[None, None], shape)[0], expected.detach())


def test_the_periodic_kernel_agrees_with_gpytorch():
    x = torch.linspace(0, 4, 30).double()[:, None]
    kernel = gpytorch.kernels.PeriodicKernel().double()
    kernel.lengthscale, kernel.period_length = torch.tensor(1.0), torch.tensor(1.3, dtype=torch.float64)
    one = torch.ones(1, 1, 1).double()
    distances = torch.cdist(wound := on_circles(x[None], 1.3 * one, one), wound)
    torch.testing.assert_close(PROFILES["periodic"](distances, one)[0], kernel(x).to_dense().detach())


def test_periodic_matrices_are_not_those_of_the_rbf_with_the_same_draws():
    periodic, rbf = (GPKernel(kernels=(kind,)).draw(20, 12, seeded()) for kind in ("periodic", "rbf"))
    assert torch.equal(diagonals(periodic), diagonals(rbf))
    assert relative(periodic - rbf, rbf).min() > 1e-3


@pytest.mark.parametrize(
    ("kind", "power", "expected"),
    [
        # singles and products: exponents of RBFs add up; not sums
        ("rbf", 1, 3 / 4),
        # singles, and products in one dimension, where distances add up
        ("matern12", 2, 1 / 2 + 1 / 4 * 1 / 4),
    ],
)
def test_a_quarter_of_the_kernels_are_sums_and_a_quarter_products(kind: str, power: int, expected: float):
    # squared Euclidean distances in up to 4 dimensions have rank at most 6
    distances = off_diagonal(GPKernel(kernels=(kind,)).draw(400, 16, seeded()).log() ** power)
    found = (torch.linalg.matrix_rank(distances, rtol=1e-8) <= 6).double().mean()
    assert float(found) == pytest.approx(expected, abs=0.07)
