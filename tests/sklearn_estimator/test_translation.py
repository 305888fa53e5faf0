"""Kernels of scikit-learn as GPyTorch's: the same values, theta, gradients and bounds."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from linear_operator import settings as host_settings
from sklearn.gaussian_process.kernels import (
    RBF,
    CompoundKernel,
    ConstantKernel,
    DotProduct,
    Exponentiation,
    ExpSineSquared,
    Matern,
    PairwiseKernel,
    RationalQuadratic,
    WhiteKernel,
)

from gp_rangeformer import settings
from gp_rangeformer.plugin.recognition import recognise
from gp_rangeformer.sklearn import supported
from gp_rangeformer.sklearn.log_scale import LogScale
from gp_rangeformer.sklearn.named import NAMES, named_kernel
from gp_rangeformer.sklearn.supported import KernelError
from gp_rangeformer.sklearn.translation import evaluate, translate

LENGTHS: Any = [0.7, 2.0, 1.1]
ONE: dict[str, Any] = {
    "constant": ConstantKernel(2.3),
    "rbf": RBF(0.7),
    "matern12": Matern(0.7, nu=0.5),
    "matern32": Matern(0.7, nu=1.5),
    "matern52": Matern(0.7, nu=2.5),
    "matern, infinity": Matern(0.7, nu=math.inf),
    "rational quadratic": RationalQuadratic(0.7, alpha=0.4),
    "periodic": ExpSineSquared(0.6, periodicity=1.7),
    "dot product": DotProduct(1.3),
    "sum": 1.7 * RBF(0.7) + RationalQuadratic(1.2, 0.3) + 0.4,
    "product": 1.7 * RBF(3.0) * ExpSineSquared(0.6, 1.7) * 0.3,
    "product of sums": (RBF(0.7) + ConstantKernel(0.2)) * (Matern(0.7, nu=1.5) + DotProduct(0.3)),
    "two constants": ConstantKernel(2.0) * ConstantKernel(3.0) + RBF(0.5),
    "power": (0.5 * RBF(0.7) + 0.2) ** 3,
    "power of a dot product": DotProduct(0.7) ** 2 * 0.1,
}
SEVERAL: dict[str, Any] = {
    "rbf": RBF(LENGTHS),
    "matern": 2.0 * Matern(LENGTHS, nu=1.5),
    "one length": Matern(0.9, nu=2.5) + RationalQuadratic(1.4),
}
NOISY: dict[str, Any] = {
    "noise": RBF(0.7) + WhiteKernel(0.3),
    "scaled noise": 2.0 * (RBF(0.7) + WhiteKernel(0.3)),
    "noise alone scaled": RBF(0.7) + 2.0 * WhiteKernel(0.3) * 0.5,
    "two noises": WhiteKernel(0.1) + 2.0 * RBF(0.7) + WhiteKernel(0.3),
    "product": (2.0 * RBF(0.7) + WhiteKernel(0.3)) * (Matern(0.4, nu=1.5) + 0.5 + WhiteKernel(0.2)),
    "power": (1.5 * RBF(0.7) + WhiteKernel(0.3)) ** 2,
}
X = np.random.default_rng(0).normal(size=(12, 3))
Z = np.random.default_rng(1).normal(size=(5, 3))
CASES = [
    *(pytest.param(kernel, X[:, :1], Z[:, :1], id=name) for name, kernel in (ONE | NOISY).items()),
    *(pytest.param(kernel, X, Z, id=f"{name}, 3 columns") for name, kernel in SEVERAL.items()),
]
# Distances of numbers near 1, some operations: a few times eps of values of up to 30.
ROUNDING = 1e-12


def values(kernel: Any, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return kernel(torch.tensor(x), torch.tensor(z)).to_dense().numpy()


def noise(kernel) -> float:
    with torch.no_grad():
        return float(evaluate(kernel.white))


@pytest.mark.parametrize(("kernel", "x", "z"), CASES)
def test_values_are_those_of_scikit_learn(kernel, x, z) -> None:
    found = translate(kernel, x.shape[1], fit=False)
    assert found.covariance is not None
    np.testing.assert_allclose(values(found.covariance, x, z), kernel(x, z), rtol=ROUNDING, atol=ROUNDING)
    white = noise(found)
    own = values(found.covariance, x, x) + white * np.eye(len(x))
    np.testing.assert_allclose(own, kernel(x), rtol=ROUNDING, atol=ROUNDING)
    with torch.no_grad():
        diagonal = found.covariance(torch.tensor(x), diag=True).numpy()
    np.testing.assert_allclose(diagonal + white, kernel.diag(x), rtol=ROUNDING, atol=ROUNDING)


def check_whole(kernel: Any, x: np.ndarray) -> None:
    """K with its noise, theta, and the gradient of a weighted sum of K's entries."""
    found = translate(kernel, x.shape[1], fit=False)
    np.testing.assert_allclose(found.theta(), kernel.theta, rtol=ROUNDING, atol=ROUNDING)
    known, gradient = kernel(x, eval_gradient=True)
    whole = evaluate(found.white) * torch.eye(len(x), dtype=torch.float64)
    if found.covariance is not None:
        whole = whole + found.covariance(torch.tensor(x)).to_dense()
    np.testing.assert_allclose(whole.detach().numpy(), known, rtol=ROUNDING, atol=ROUNDING)
    weight = np.random.default_rng(2).normal(size=(len(x), len(x)))
    (whole * torch.tensor(weight)).sum().backward()
    expected = np.einsum("ij,ijk->k", weight, gradient)
    np.testing.assert_allclose(found.theta_gradient(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "x", "z"), CASES)
def test_theta_and_its_gradient_are_those_of_scikit_learn(kernel, x, z) -> None:
    check_whole(kernel, x)


LEAVES = {name: ONE[name] for name in list(ONE)[: list(ONE).index("sum")]} | {"white": WhiteKernel(0.3)}


def test_this_file_knows_every_kernel() -> None:
    assert {type(leaf) for leaf in LEAVES.values()} == set(supported.LEAVES)


@pytest.mark.parametrize("combined", [operator.add, operator.mul], ids=["+", "*"])
@pytest.mark.parametrize("first", LEAVES)
@pytest.mark.parametrize("second", LEAVES)
def test_every_two_kernels_together_are_those_of_scikit_learn(first, second, combined) -> None:
    kernel, x = combined(LEAVES[first], LEAVES[second]), X[:, :1]
    for whole in (kernel, 2.0 * kernel, kernel + RBF(1.3), kernel * Matern(1.3, nu=1.5), kernel**2):
        noise_times_squares = combined is operator.mul or isinstance(whole, Exponentiation)
        if {first, second} == {"white", "dot product"} and noise_times_squares:
            with pytest.raises(KernelError, match="grows with x"):
                translate(whole, 1, fit=False)
        else:
            check_whole(whole, x)


@pytest.mark.parametrize("name", [name for name in ONE if "dot" not in name and "product of" not in name])
def test_stationary_kernels_are_evaluated_by_the_plug_in(name) -> None:
    found = translate(ONE[name], 1, fit=True)
    x = torch.tensor(X[:, :1])
    assert found.covariance is not None
    fused = recognise(found.covariance, x)
    assert fused is not None
    np.testing.assert_allclose(fused.dense().detach().numpy(), ONE[name](X[:, :1]), rtol=1e-12, atol=1e-12)


def test_a_product_with_a_dot_product_is_exact_where_the_host_would_approximate() -> None:
    x = np.random.default_rng(3).normal(size=(60, 2))
    kernel = DotProduct(0.5) * RBF(0.8)
    found = translate(kernel, 2, fit=False)
    points, column = torch.tensor(x), torch.ones(60, 1, dtype=torch.float64)
    assert found.covariance is not None
    with torch.no_grad(), settings.rangeformer(), host_settings.max_cholesky_size(10):
        operator: Any = found.covariance(points)
        product = (operator.evaluate_kernel() @ column).numpy()
    np.testing.assert_allclose(product, kernel(x) @ column.numpy(), rtol=1e-10)


def test_fixed_hyperparameters_are_none_of_the_free_ones() -> None:
    kernel = ConstantKernel(2.0, "fixed") * RBF(0.5, (0.1, 10)) + WhiteKernel(0.1, "fixed")
    found = translate(kernel, 1, fit=True)
    np.testing.assert_allclose(found.theta(), np.log([0.5]), rtol=1e-12)
    assert found.covariance is not None
    asked = [name for name, raw in found.covariance.named_parameters() if raw.requires_grad]
    assert asked == ["base_kernel.raw_lengthscale"]


@pytest.mark.parametrize("stored", [-50.0, -3.0, 0.0, 3.0, 50.0])
def test_bounds_hold_for_every_stored_number(stored) -> None:
    lower, upper = torch.tensor([1e-5, 0.9], dtype=torch.float64), torch.tensor([1e5, 1.1], dtype=torch.float64)
    scale = LogScale(lower, upper)
    value = scale.value(torch.full((2,), stored, dtype=torch.float64))
    eps = 1e-15
    assert bool(((value >= lower * (1 - eps)) & (value <= upper * (1 + eps))).all())


def test_a_step_of_one_is_a_factor_of_e_between_wide_bounds_and_without_any() -> None:
    zero, infinity = torch.zeros(1, dtype=torch.float64), torch.full((1,), math.inf, dtype=torch.float64)
    stored = torch.tensor([0.3], dtype=torch.float64)
    assert LogScale(zero, infinity).value(stored).item() == pytest.approx(math.exp(0.3), rel=1e-15)
    wide = LogScale(zero + 1e-9, zero + 1e9)
    ratio = wide.value(stored + 1) / wide.value(stored)
    assert ratio.item() == pytest.approx(math.e, rel=1e-8)
    for scale in (wide, LogScale(zero, zero + 5), LogScale(zero + 0.1, infinity), LogScale(zero, infinity)):
        value = torch.tensor([0.37], dtype=torch.float64)
        assert scale.value(scale.stored(value)).item() == pytest.approx(0.37, rel=1e-13)
        assert scale.transform(scale.inverse_transform(value)).item() == pytest.approx(0.37, rel=1e-13)


@pytest.mark.parametrize("start", [1e-3, 1e-9, 1e3, 1e7])
def test_a_start_on_a_bound_or_beyond_is_moved_inside(start) -> None:
    found = translate(RBF(start, (1e-3, 1e3)), 1, fit=True)
    nearest = math.log(1e-3) if start < 1 else math.log(1e3)
    assert abs(found.theta()[0] - nearest) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize(
    ("kernel", "columns", "words"),
    [
        (Matern(nu=0.7), 1, "nu"),
        (PairwiseKernel(), 1, "PairwiseKernel"),
        (CompoundKernel([RBF()]), 1, "CompoundKernel"),
        (ExpSineSquared(), 2, "one column"),
        (RBF(LENGTHS[:2]), 3, "3 columns"),
        (Exponentiation(RBF(), 0.5), 1, "whole powers"),
        (DotProduct() * WhiteKernel(), 1, "alpha"),
        (RBF(1.0, (2.0, 1.0)), 1, "length_scale_bounds"),
    ],
)
def test_what_has_no_counterpart_is_named(kernel, columns, words) -> None:
    with pytest.raises(KernelError, match=words):
        translate(kernel, columns, fit=True)


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Other(RBF):
        pass

    with pytest.raises(KernelError, match="Other"):
        translate(Other(), 1, fit=True)


@pytest.mark.parametrize("name", [*NAMES, "linear+rbf"])
def test_every_name_is_a_kernel_with_noise(name) -> None:
    found = translate(named_kernel(name, 1), 1, fit=True)
    assert found.covariance is not None
    assert noise(found) == pytest.approx(1.0)
    with pytest.raises(KernelError, match="matern32"):
        named_kernel("matern33", 1)


def test_copies_have_noise_of_their_own() -> None:
    found = translate(2.0 * (RBF(0.7) + WhiteKernel(0.3)), 1, fit=True)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        module, _ = copied.free[0]
        with torch.no_grad():
            module.raw_outputscale.add_(1.0)
        # The scale of the copy, and so of its noise, has grown by about e.
        assert noise(copied) > 2 * noise(found)
