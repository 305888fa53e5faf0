"""Training and prediction on a GPU: the CPU's answers, the same bits twice, and clear words for mixed devices."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from torch import Tensor

from gp_rangeformer import clear_memory, collect_reports, settings
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare.audit import gradient_vector
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model

pytestmark = pytest.mark.cuda
N = 1600


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return datasets.load("borehole", n=N, n_test=50, seed=3)


def trained(dataset: Dataset, device: str, dtype: torch.dtype, steps: int = 4) -> tuple[list[float], Tensor, list[str]]:
    """Values and the last gradient of a few Adam steps, and who answered."""
    data = dataset.to(dtype, device)
    model, likelihood = build_model(data, "matern32")
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    values = []
    clear_memory()
    with settings.rangeformer(), settings.min_size(1000), collect_reports() as reports:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = -mll(model(data.train_x), data.train_y)  # type: ignore[operator]
            loss.backward()
            values.append(loss.item())
            optimizer.step()
    return values, gradient_vector(model).cpu(), [report.solver for report in reports]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-4)])
def test_training_gives_the_values_and_gradients_of_the_cpu(dataset, dtype, tolerance) -> None:
    here, there = trained(dataset, "cpu", dtype), trained(dataset, "cuda", dtype)
    assert there[0] == pytest.approx(here[0], abs=tolerance)
    # Solves stop at a tolerance of 0.01, and where they stop depends on rounding.
    assert float((there[1] - here[1]).norm() / here[1].norm()) < 0.01
    assert set(there[2]) == set(here[2]) == {"rangeformer"}


def test_the_same_seed_gives_the_same_bits(dataset) -> None:
    first, second = (trained(dataset, "cuda", torch.float32) for _ in range(2))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("fast", [False, True])
def test_predictions_are_those_of_the_cpu(dataset, fast) -> None:
    found = []
    for device in ("cpu", "cuda"):
        data = dataset.to(torch.float64, device)
        model, likelihood = build_model(data, "matern32")
        model.eval()
        likelihood.eval()
        clear_memory()
        with (
            settings.rangeformer(),
            settings.min_size(1000),
            gpytorch.settings.fast_pred_var(fast),
            collect_reports() as reports,
            torch.no_grad(),
        ):
            prediction = likelihood(model(data.test_x))
        found.append((prediction.mean.cpu(), prediction.variance.cpu()))
        assert {report.solver for report in reports} <= {"rangeformer", "exact"}
    (mean, variance), (expected_mean, expected_variance) = found
    assert float((mean - expected_mean).abs().max()) < 1e-3
    assert float((variance / expected_variance - 1).abs().max()) < 0.02


def test_targets_left_on_the_cpu_are_named(dataset) -> None:
    data = dataset.to(torch.float32, "cuda")
    model, likelihood = build_model(data, "matern32")
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    with settings.rangeformer(), pytest.raises(RuntimeError, match=r"cpu|same device"):
        mll(model(data.train_x), data.train_y.cpu())  # type: ignore[operator]
