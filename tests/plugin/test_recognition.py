"""Which kernels have a fused form, and that all others are left to GPyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    CosineKernel,
    GridInterpolationKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from gpytorch.priors import GammaPrior
from linear_operator.operators import DenseLinearOperator
from linear_operator.settings import trace_mode
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.expression import Constant, Product, Scale, Stationary, Sum
from gp_rangeformer.lab.models import DecayingPeriodicKernel
from gp_rangeformer.plugin.recognition import recognise
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


@pytest.mark.parametrize("mode", [gpytorch.settings.trace_mode, trace_mode], ids=["gpytorch", "linear_operator"])
def test_tracing_is_left_to_gpytorch(mode: Any) -> None:
    with mode():
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


# Every form that GPyTorch takes for a constructor's argument: the host's matrix and gradients, fused or declined.
LEAVES: dict[str, Any] = {
    "rbf": RBFKernel,
    "matern": MaternKernel,
    "rq": RQKernel,
    "periodic": PeriodicKernel,
    "constant": lambda **options: ConstantKernel(
        **{name: value for name, value in options.items() if name == "batch_shape"}
    ),
}


def exponential() -> Any:
    return Positive(transform=torch.exp, inv_transform=torch.log)  # type: ignore[arg-type]


FORMS: dict[str, Callable[[Any], Kernel]] = {
    "plain": lambda leaf: leaf(),
    "active_dims_number": lambda leaf: leaf(active_dims=1),
    "active_dims_scalar_tensor": lambda leaf: leaf(active_dims=torch.tensor(2)),
    "active_dims_tensor": lambda leaf: leaf(active_dims=torch.tensor([2, 0])),
    "active_dims_int32": lambda leaf: leaf(active_dims=torch.tensor([2, 0], dtype=torch.int32)),
    "active_dims_int16": lambda leaf: leaf(active_dims=torch.tensor([2, 0], dtype=torch.int16)),
    "active_dims_list": lambda leaf: leaf(active_dims=[0, 2]),
    "active_dims_range": lambda leaf: leaf(active_dims=range(2)),
    "active_dims_tuple": lambda leaf: leaf(active_dims=(1,)),
    "active_dims_numpy": lambda leaf: leaf(active_dims=np.array([0, 2])),
    "active_dims_twice": lambda leaf: leaf(active_dims=(0, 0, 1)),
    "active_dims_all": lambda leaf: leaf(active_dims=(0, 1, 2)),
    "active_dims_negative": lambda leaf: leaf(active_dims=(-1,)),
    "active_dims_negative_number": lambda leaf: leaf(active_dims=-1),
    "active_dims_true": lambda leaf: leaf(active_dims=True),
    "active_dims_mask": lambda leaf: leaf(active_dims=torch.tensor([True, False, True])),
    "active_dims_floats": lambda leaf: leaf(active_dims=torch.tensor([0.0, 1.0])),
    "active_dims_empty": lambda leaf: leaf(active_dims=()),
    "active_dims_beyond": lambda leaf: leaf(active_dims=(0, 3)),
    "active_dims_column": lambda leaf: leaf(active_dims=torch.tensor([[0], [1]])),
    "ard": lambda leaf: leaf(ard_num_dims=3),
    "ard_one": lambda leaf: leaf(ard_num_dims=1),
    "ard_of_active": lambda leaf: leaf(ard_num_dims=2, active_dims=(0, 2)),
    "ard_of_a_number": lambda leaf: leaf(ard_num_dims=1, active_dims=1),
    "ard_of_twice": lambda leaf: leaf(ard_num_dims=2, active_dims=(1, 1)),
    "ard_of_others": lambda leaf: leaf(ard_num_dims=2),
    "batch_shape_empty": lambda leaf: leaf(batch_shape=torch.Size([])),
    "batch_shape_one": lambda leaf: leaf(batch_shape=torch.Size([1])),
    "batch_shape_two": lambda leaf: leaf(batch_shape=torch.Size([2])),
    "eps": lambda leaf: leaf(eps=0.5),
    "prior": lambda leaf: leaf(lengthscale_prior=GammaPrior(3.0, 6.0)),
    "constraint_above": lambda leaf: leaf(lengthscale_constraint=GreaterThan(0.3)),
    "constraint_interval": lambda leaf: leaf(lengthscale_constraint=Interval(0.1, 2.0)),
    "constraint_exponential": lambda leaf: leaf(lengthscale_constraint=exponential()),
    "scaled": lambda leaf: ScaleKernel(leaf()),
    "scaled_number": lambda leaf: ScaleKernel(leaf(active_dims=1)),
    "scaled_with_a_prior": lambda leaf: ScaleKernel(leaf(), outputscale_prior=GammaPrior(2.0, 1.0)),
    "scaled_within": lambda leaf: ScaleKernel(leaf(), outputscale_constraint=Interval(0.1, 3.0)),
    "scaled_batch_shape_empty": lambda leaf: ScaleKernel(leaf(), batch_shape=torch.Size([])),
    "scaled_batch": lambda leaf: ScaleKernel(leaf(), batch_shape=torch.Size([2])),
    "scaled_active_dims": lambda leaf: ScaleKernel(leaf(), active_dims=(1,)),
    "scaled_active_of_active": lambda leaf: ScaleKernel(leaf(active_dims=(1, 2)), active_dims=(0,)),
    "sum_of_numbers": lambda leaf: leaf(active_dims=0) + leaf(active_dims=torch.tensor(2)),
    "product_of_numbers": lambda leaf: ScaleKernel(leaf(active_dims=0)) * leaf(active_dims=1),
    "sum_of_one": lambda leaf: AdditiveKernel(leaf()),
    "sum_of_none": lambda leaf: AdditiveKernel(),
    "product_of_none": lambda leaf: ProductKernel(),
    "frozen": lambda leaf: leaf().requires_grad_(False),
    "evaluating": lambda leaf: leaf().eval(),
}


def attempt(function: Callable[[], Any]) -> Any:
    """What ``function`` returns, or the class of what it raises."""
    try:
        return function()
    except Exception as error:
        return type(error)


def host_and_fused(kernel: Any, x: Tensor) -> tuple[Any, Any]:
    """(K, gradients) by GPyTorch, and with the flag on."""
    weight = torch.randn(len(x), len(x), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    parameters = [parameter for parameter in kernel.parameters() if parameter.requires_grad]

    def derived() -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        matrix = kernel(inputs).to_dense()
        sources = [inputs, *parameters]
        found = torch.autograd.grad((weight * matrix).sum(), sources, allow_unused=True, materialize_grads=True)
        return [matrix.detach(), *found]

    host = attempt(derived)
    with settings.rangeformer(), settings.exact_size(1):
        return host, attempt(derived)


@pytest.mark.parametrize("leaf", sorted(LEAVES))
@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_an_argument_means_what_it_means_to_gpytorch(form, leaf) -> None:
    kernel = attempt(lambda: FORMS[form](LEAVES[leaf]))
    if isinstance(kernel, type):
        pytest.skip("GPyTorch does not take it")
    assert_as_host(*host_and_fused(kernel.double(), points(12)))


def assert_as_host(host: Any, found: Any) -> None:
    if isinstance(host, type):
        assert found is host
        return
    assert not isinstance(found, type), found
    for own, expected in zip(found, host, strict=True):
        # GPyTorch's distance of a point to itself is 1e-8, and no smooth function's.
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, np.float64(1.5), np.float32(2.5), torch.tensor(1.5), True], ids=repr)
def test_every_form_of_a_matern_kernels_order_is_gpytorchs(nu) -> None:
    kernel = attempt(lambda: MaternKernel(nu))
    if isinstance(kernel, type):
        pytest.skip("GPyTorch does not take it")
    assert_as_host(*host_and_fused(kernel.double(), points(12)))


@pytest.mark.parametrize("name", ["lengthscale", "alpha", "period_length", "outputscale", "constant"])
def test_values_set_by_number_or_tensor_are_the_same(name) -> None:
    for value in (0.7, 1, torch.tensor(0.7), torch.tensor([[0.7]]), np.float64(0.7)):
        kernel: Any = ScaleKernel(RQKernel() * PeriodicKernel() + ConstantKernel()).double()
        for module in kernel.modules():
            if hasattr(module, f"raw_{name}"):
                # GPyTorch broadcasts some; of the others it takes their own shape.
                number = torch.as_tensor(value, dtype=torch.float64)
                shape = {"alpha": (1,), "constant": (1,), "outputscale": ()}.get(name)
                setattr(module, name, value if shape is None else number.reshape(shape))
        assert recognise(kernel, points(12)) is not None
        assert_as_host(*host_and_fused(kernel, points(12)))


@pytest.mark.parametrize(
    "form", ["plain", "active_dims_number", "active_dims_scalar_tensor", "active_dims_twice", "ard_of_active", "prior"]
)
def test_the_forms_in_use_are_fused(form) -> None:
    assert recognise(FORMS[form](RBFKernel).double(), points(12)) is not None


@pytest.mark.parametrize(
    "name", ["active_dims_negative", "active_dims_beyond", "active_dims_mask", "active_dims_floats"]
)
def test_dimensions_that_are_no_indices_are_left_to_gpytorch(name) -> None:
    assert recognise(FORMS[name](RBFKernel).double(), points(12)) is None
