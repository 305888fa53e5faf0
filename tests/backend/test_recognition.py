"""Which kernels have a fused form, and that all others are left to GPyTorch."""

from __future__ import annotations

from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    CosineKernel,
    GridInterpolationKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PolynomialKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from linear_operator.operators import DenseLinearOperator
from linear_operator.settings import trace_mode
from torch import Tensor

from gp_rangeformer.backend.recognition import recognise
from gp_rangeformer.kernels.expression import Constant, Product, Scale, Stationary, Sum
from gp_rangeformer.models import DecayingPeriodicKernel
from tests.kernels.market import KERNELS, make, points


class Derived(RBFKernel):
    """A subclass may override anything."""


class Louder(DecayingPeriodicKernel):
    """Computes something else than what it inherits to say."""

    def forward(self, x1: Tensor, x2: Tensor, **options: Any) -> Tensor:
        return 2 * super().forward(x1, x2, **options)


class Relabelled(DecayingPeriodicKernel):
    """Says something of a forward that is another class's."""

    def fused_composition(self) -> Kernel:
        return ProductKernel(self.drift, RBFKernel())


def with_forward_on_the_instance() -> RBFKernel:
    kernel = RBFKernel()
    kernel.forward = lambda *arguments, **options: torch.ones(1)  # type: ignore[method-assign]
    return kernel


def with_hook() -> RBFKernel:
    kernel = RBFKernel()
    kernel.register_forward_hook(lambda module, arguments, output: None)
    return kernel


DECLINED = {
    "linear": LinearKernel,
    "polynomial": lambda: PolynomialKernel(power=2),
    "cosine": CosineKernel,
    "spectral_mixture": lambda: SpectralMixtureKernel(num_mixtures=2, ard_num_dims=3),
    "interpolation": lambda: GridInterpolationKernel(RBFKernel(), grid_size=8, num_dims=3),
    "subclass": Derived,
    "composed_with_another_forward": lambda: Louder(1.0, 2.0),
    "composed_otherwise_than_its_forward": lambda: Relabelled(1.0, 2.0),
    "batch": lambda: RBFKernel(batch_shape=torch.Size([2])),
    "batch_inside": lambda: ScaleKernel(RBFKernel() + MaternKernel(batch_shape=torch.Size([2]))),
    "batch_of_one": lambda: RBFKernel(batch_shape=torch.Size([1])),
    "other_ard": lambda: RBFKernel(ard_num_dims=2),
    "active_dims_out_of_range": lambda: RBFKernel(active_dims=(5,)),
    "linear_inside": lambda: ScaleKernel(RBFKernel() * LinearKernel()),
    "forward_on_the_instance": with_forward_on_the_instance,
    "hook": with_hook,
}


@pytest.mark.parametrize("name", sorted(DECLINED))
def test_what_is_not_covered_is_left_to_gpytorch(name) -> None:
    assert recognise(DECLINED[name]().double(), points(5)) is None


@pytest.mark.parametrize(
    "x", [points(5).float(), points(5)[:, 0], points(5).expand(2, 5, 3), points(0), points(5).long()], ids=str
)
def test_inputs_of_another_dtype_or_shape_are_left_to_gpytorch(x) -> None:
    assert recognise(RBFKernel().double(), points(5)) is not None
    assert recognise(RBFKernel().double(), x) is None


def test_half_precision_is_left_to_gpytorch() -> None:
    assert recognise(RBFKernel().half(), points(5).half()) is None


def test_tracing_is_left_to_gpytorch() -> None:
    with trace_mode():
        assert recognise(RBFKernel().double(), points(5)) is None


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_of_the_market_is_recognised(name) -> None:
    assert recognise(make(name), points(5)) is not None


def test_nested_kernels_keep_their_structure_and_their_columns() -> None:
    inner = ProductKernel(RBFKernel(active_dims=(1,)), MaternKernel(0.5))
    kernel = ScaleKernel(
        AdditiveKernel(inner, gpytorch.kernels.ConstantKernel(), RQKernel(active_dims=(2, 0)))
    ).double()
    fused = recognise(kernel, points(5))
    assert fused is not None
    product = Product((Stationary("rbf", (1,)), Stationary("matern12")))
    assert fused.expression == Scale(Sum((product, Constant(), Stationary("rq", (2, 0)))))


def test_active_dims_of_nested_kernels_are_those_of_the_selected_columns() -> None:
    product: Any = ProductKernel(RBFKernel(active_dims=(1,)), RBFKernel()).double()
    product.active_dims = torch.tensor([2, 0])
    x = points(5)
    fused = recognise(product, x)
    assert fused is not None
    assert fused.expression == Product((Stationary("rbf", (0,)), Stationary("rbf", (2, 0))))
    torch.testing.assert_close(fused.dense(), product(x).to_dense())


def test_a_kernel_that_says_what_it_is_composed_of_has_its_own_values_and_gradients() -> None:
    kernel: Any = ScaleKernel(DecayingPeriodicKernel(period=0.7, decay=1.5)).double()
    x, weight = points(40), torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = recognise(kernel, x)
    assert fused is not None
    assert fused.expression == Scale(Product((Stationary("rbf"), Stationary("periodic"))))
    parameters = [parameter for parameter in kernel.parameters() if parameter.requires_grad]
    assert len(parameters) == 3  # the period is fixed

    def derived(matrix: Tensor) -> tuple[Tensor, ...]:
        return matrix.detach(), *torch.autograd.grad((weight * matrix).sum(), parameters)

    for own, expected in zip(derived(fused.dense()), derived(kernel(x).to_dense()), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["product", "product_of_sums"])
def test_gpytorch_itself_evaluates_products_densely_at_any_size(name) -> None:
    """So a dense matrix in their place loses no structure: Lanczos roots are made of products of lazy factors only."""
    kernel: Any = make(name)
    with gpytorch.settings.max_cholesky_size(10):
        assert type(kernel(points(50)).evaluate_kernel()) is DenseLinearOperator
