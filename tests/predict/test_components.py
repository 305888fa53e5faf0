"""Parts of a sum of kernels against the joint Gaussian of all of them, dense and in float64."""

from __future__ import annotations

import importlib
from typing import Any

import gpytorch
import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize
from gpytorch.kernels import LinearKernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from torch import Tensor

from gp_rangeformer import InsufficientMemoryError, predict, settings
from tests.plugin.market import GP, LIKELIHOODS, build

module = importlib.import_module("gp_rangeformer.predict.components")  # whose name is its function's
N, T = 60, 17


def scaled(kernel: Any, scale: float) -> Any:
    kernel = ScaleKernel(kernel)
    kernel.outputscale = scale
    return kernel


def sums() -> dict[str, Any]:
    return {
        "sum": scaled(RBFKernel(), 2.0)
        + scaled(MaternKernel(0.5), 0.5)
        + scaled(MaternKernel(0.5, active_dims=(1,)), 0.3),
        "scaled": scaled(RBFKernel() + MaternKernel(1.5, active_dims=(0, 2)), 1.7),
        "nested": scaled(RBFKernel() + scaled(PeriodicKernel() + MaternKernel(2.5), 0.4), 2.0) + LinearKernel(),
        "product": RBFKernel() * PeriodicKernel() + scaled(MaternKernel(1.5), 3.0),
    }


NAMES = {
    "sum": ["RBF", "Matern 1", "Matern 2"],
    "scaled": ["RBF", "Matern"],
    "nested": ["RBF", "Periodic", "Matern", "Linear"],
    "product": ["RBF x Periodic", "Matern"],
}


def model_of(kernel: Any, dtype: torch.dtype = torch.float64, likelihood: str = "gaussian") -> tuple[Any, Tensor]:
    """A model, and points."""
    problem = build("rbf", likelihood, n=N, dtype=dtype)
    like = LIKELIHOODS[likelihood](torch.linspace(0.02, 0.2, N, dtype=dtype), torch.Size())
    model = GP(problem.x, problem.y, like, gpytorch.means.ConstantMean(), kernel).to(dtype)
    model.mean_module.constant = 0.4
    x = torch.rand(T, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    return model, x


@torch.no_grad()
def dense(model: Any, x: Tensor, parts: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """Conditioning of (f_j(x), y) part by part, written out."""
    points, y = model.train_inputs[0], model.train_targets
    noise = model.likelihood(model.forward(points)).covariance_matrix - model.covar_module(points).to_dense()
    a = sum(part(points).to_dense() for part in parts) + noise
    found = []
    for part in parts:
        cross = part(x, points).to_dense()
        mean = cross @ torch.linalg.solve(a, y - model.mean_module.constant)
        found.append((mean, (part(x).to_dense() - cross @ torch.linalg.solve(a, cross.mT)).diagonal()))
    return found


def assert_close(found: predict.Component, expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(found.mean, expected[0], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.variance, expected[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("likelihood", ["gaussian", "heteroscedastic"])
@pytest.mark.parametrize("flag", [True, False])
def test_every_part_is_the_conditional_of_the_joint_gaussian(flag: bool, likelihood: str) -> None:
    model, x = model_of(sums()["sum"], likelihood=likelihood)
    with settings.rangeformer(flag):
        found = predict.components(model, x)
    assert model.training
    for part, expected in zip(found, dense(model, x, list(model.covar_module.kernels)), strict=True):
        assert_close(part, expected)


@pytest.mark.parametrize("kind", NAMES)
def test_parts_have_names_and_their_means_add_up_to_the_prediction(kind: str) -> None:
    model, x = model_of(sums()[kind])
    found = predict.components(model, x)
    assert [part.name for part in found] == NAMES[kind]
    model.eval()
    with torch.no_grad():
        prediction = model(x)
    total = sum(part.mean for part in found) + model.mean_module.constant.detach()
    torch.testing.assert_close(total, prediction.mean, rtol=1e-7, atol=1e-8)
    assert all(bool((part.variance >= 0).all()) for part in found)


class Parts(gpytorch.models.ExactGP):
    """A forward that adds kernels itself."""

    def __init__(self, x: Tensor, y: Tensor, moved: float = 0.0) -> None:
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ZeroMean()
        self.trend, self.season, self.moved = scaled(RBFKernel(), 2.0), scaled(PeriodicKernel(), 0.5), moved

    def forward(self, x: Tensor) -> Any:
        mean: Any = self.mean_module(x)
        return gpytorch.distributions.MultivariateNormal(mean, self.trend(x) + self.season(x * (1 + self.moved)))


def test_kernels_that_a_forward_adds_are_given_by_name() -> None:
    base, x = model_of(sums()["sum"])
    model: Any = Parts(base.train_inputs[0], base.train_targets).double()
    names = {"the season": model.season, "the trend": model.trend}
    found = predict.components(model, x, names)
    assert [part.name for part in found] == list(names)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(found[0].mean + found[1].mean, model(x).mean, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="has no covar_module"):
        predict.components(model, x)
    with pytest.raises(ValueError, match="do not add up"):
        predict.components(model, x, {"the trend": model.trend})
    with pytest.raises(ValueError, match="the model's own, by name: another"):
        predict.components(model, x, {**names, "another": RBFKernel()})
    moved: Any = Parts(base.train_inputs[0], base.train_targets, moved=0.1).double()
    with pytest.raises(ValueError, match="no transform before them"):
        predict.components(moved, x, {"the season": moved.season, "the trend": moved.trend})


def test_a_float32_model_is_answered_in_float64() -> None:
    kernel = scaled(RBFKernel(), 100.0) + scaled(MaternKernel(0.5), 0.01)
    model, x = model_of(kernel, torch.float32)
    found = predict.components(model, x)
    assert next(model.parameters()).dtype == torch.float32
    wide = model.double()
    for part, expected in zip(found, dense(wide, x.double(), list(wide.covar_module.kernels)), strict=True):
        assert_close(part, expected)


def test_botorchs_transforms_are_applied() -> None:
    kernel = sums()["sum"]
    x = torch.rand(N, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.tensor(
        [1.0, 20.0, 5.0]
    )
    y = (x[:, :1] * 3).sin() + 0.1 * x[:, 1:2]
    model: Any = SingleTaskGP(x, y, covar_module=kernel, input_transform=Normalize(3), outcome_transform=None)
    points = x[:T] + 0.1
    found = predict.components(model.double(), points)
    with torch.no_grad():
        mean = model.posterior(points).mean.squeeze(-1)
    total = sum(part.mean for part in found) + model.mean_module.constant.detach()
    torch.testing.assert_close(total, mean, rtol=1e-6, atol=1e-7)


def test_many_points_come_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(sums()["sum"])
    whole = predict.components(model, x)
    monkeypatch.setattr(module, "_STRIP", 4 * N)
    for part, expected in zip(predict.components(model, x), whole, strict=True):
        assert_close(part, (expected.mean, expected.variance))


def test_what_is_not_covered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(sums()["sum"])
    single, _ = model_of(scaled(RBFKernel(), 1.0))
    with pytest.raises(ValueError, match="no sum of kernels"):
        predict.components(single, x)
    with pytest.raises(ValueError, match="t x 3"):
        predict.components(model, x[:, :2])
    with pytest.raises(ValueError, match="NaN or infinity"):
        predict.components(model, x * torch.nan)
    with pytest.raises(ValueError, match="components needs"):
        predict.components(torch.nn.Linear(1, 1), x)
    monkeypatch.setattr(module, "shortage", lambda *arguments: "none is left")
    with pytest.raises(InsufficientMemoryError, match="none is left"):
        predict.components(model, x)
