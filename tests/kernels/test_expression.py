"""What an expression refuses."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer.kernels.evaluate import evaluate
from gp_rangeformer.kernels.expression import Product, Scale, Stationary, Sum, parameter_names


def test_an_unknown_stationary_kernel_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="matern72"):
        Stationary("matern72")  # type: ignore[arg-type]


@pytest.mark.parametrize("node", [Sum, Product])
def test_a_sum_or_product_of_nothing_is_refused(node) -> None:
    with pytest.raises(ValueError, match="at least one"):
        node(())


def test_parameters_are_named_depth_first() -> None:
    expression = Scale(Sum((Stationary("rq"), Scale(Stationary("periodic")))))
    names = ("outputscale", "lengthscale", "alpha", "outputscale", "lengthscale", "period_length")
    assert parameter_names(expression) == names


def test_a_missing_parameter_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match="outputscale"):
        evaluate(Scale(Stationary("rbf")), torch.zeros(3, 1), (torch.ones(1, 1),))
