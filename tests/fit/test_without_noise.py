"""Tables without noise, fitted as far as float64 resolves: where a fit ends, and what it says of rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.fit import FitResult, fit_mll
from gp_rangeformer.fit.result import AS_NEAR_AS_ROUNDING_ALLOWS, shown
from tests.fit.models import Model, by_lbfgs, value


def build(kernel: str, n: int, d: int) -> Any:
    """A smooth function of points in a cube, standardised, with a noise of at least 1e-8."""
    x = torch.from_numpy(np.random.default_rng(d // 2).uniform(-2, 2, (n, d)))
    y = (2 * x[:, 0]).sin() + x[:, -1].square()
    x, y = standardised(x), standardised(y)
    many = d if d > 1 else None
    bases = {
        "rbf": lambda: RBFKernel(ard_num_dims=many),
        "rq": lambda: RQKernel(ard_num_dims=many),
        "matern12": lambda: MaternKernel(0.5, ard_num_dims=many),
        "matern32": lambda: MaternKernel(1.5, ard_num_dims=many),
        "matern52": lambda: MaternKernel(2.5, ard_num_dims=many),
    }
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(1e-8))
    model = Model(x, y, likelihood, ConstantMean(), ScaleKernel(bases[kernel]())).double()
    return ExactMarginalLogLikelihood(likelihood, model)


def standardised(columns: Tensor) -> Tensor:
    return (columns - columns.mean(0)) / columns.std(0, correction=0)


def fitted(mll: Any) -> FitResult:
    with settings.rangeformer():
        return fit_mll(mll)


def test_a_rational_quadratic_converges_as_it_becomes_gaussian() -> None:
    found = fitted(build("rq", 300, 1))
    assert found.converged, found.summary()
    assert len(found.history) < 30
    assert found.value > 7.96


@pytest.mark.parametrize(("kernel", "n", "d"), [("matern32", 40, 2), ("matern12", 40, 2), ("matern32", 60, 5)])
def test_where_average_information_gains_little_secants_converge(kernel: str, n: int, d: int) -> None:
    """Far from where the dtype ends, which is not what is said then."""
    mll = build(kernel, n, d)
    found = fitted(mll)
    assert found.converged, found.summary()
    assert not any("ends here" in note for note in found.notes)
    assert found.value == pytest.approx(value(mll), abs=1e-6)
    assert by_lbfgs(mll) < found.value + 1e-4


@pytest.mark.filterwarnings("ignore:A not p.d.")  # of steps that are not taken
@pytest.mark.parametrize("d", [2, 5])
def test_no_step_leads_to_where_a_factorisation_needs_jitter(d: int) -> None:
    """The likelihood of twice the noise is not the one that is maximised: 7.05 was the end of the fit."""
    found = fitted(build("rbf", 300, d))
    assert found.report is not None
    assert not any("jitter" in note for note in found.report.notes)
    assert found.value > 7.3
    assert found.settled, found.summary()


@pytest.mark.filterwarnings("ignore:A not p.d.")  # of steps that are not taken
@pytest.mark.parametrize(("n", "least"), [(40, 1.19), (60, 2.22), (100, 3.4)])
def test_at_the_end_of_a_dtype_a_fit_is_settled_and_says_so(n: int, least: float) -> None:
    found = fitted(build("matern52", n, 5))
    assert found.settled, found.summary()
    # At the wall, or just before it, where rounding hides what is left: roundings decide, and processors round apart.
    at_the_wall = any("float64 ends here" in note for note in found.notes)
    assert at_the_wall or found.reason == AS_NEAR_AS_ROUNDING_ALLOWS
    assert found.value > least
    assert found.rounding > found.decrement


@pytest.mark.filterwarnings("ignore:A not p.d.")
@pytest.mark.parametrize(("n", "d"), [(40, 2), (60, 5), (100, 5)])
def test_rounding_is_about_what_extended_precision_finds(n: int, d: int) -> None:
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("no wider floating-point numbers here")
    mll = build("rbf", n, d)
    found = fitted(mll)
    assert found.certain is not None
    assert abs(found.value - in_long_double(mll)) < found.rounding < 0.02 * 0.5 * found.certain.width
    assert f"{found.rounding:.4f}" in found.summary()


def in_long_double(mll: Any) -> float:
    """log p(y) / n of an RBF kernel."""
    model, wide = mll.model, np.longdouble
    x = model.train_inputs[0].numpy().astype(wide) / model.covar_module.base_kernel.lengthscale.detach().numpy()
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 2)
    n = len(x)
    rest = model.train_targets.numpy().astype(wide) - wide(model.mean_module.constant.item())
    left = wide(model.covar_module.outputscale.item()) * k + wide(mll.likelihood.noise.item()) * np.eye(n, dtype=wide)
    pivots = []
    for j in range(n):  # eliminated column by column
        pivots.append(left[j, j])
        factors = left[j + 1 :, j] / left[j, j]
        left[j + 1 :, j + 1 :] -= np.outer(factors, left[j, j + 1 :])
        rest[j + 1 :] -= factors * rest[j]
    squares = rest**2 / np.array(pivots)
    return float(-(squares.sum() + np.log(np.array(pivots)).sum() + n * np.log(2 * wide(np.pi))) / (2 * n))


@pytest.mark.parametrize(
    ("rounding", "text"),
    [
        (0.0, "1.4926 +- 0.0000"),
        (2e-5, "1.4926 +- 0.0000"),
        (0.0015, "1.4926 +- 0.0015"),
        (0.018, "1.493 +- 0.018"),
        (0.31, "1.49 +- 0.31"),
    ],
)
def test_no_more_digits_are_shown_than_rounding_leaves(rounding: float, text: str) -> None:
    assert shown(1.49262, 0.0, rounding) == text
    assert shown(1.49262, 0.002, rounding) == "1.4926 +- 0.0020"
