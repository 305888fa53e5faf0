"""Paths of BoTorch's models, and as BoTorch's own path models."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from gp_rangeformer.predict import botorch_path_model, leave_one_out, sample_paths
from tests.fit.models import DIMENSIONS, data

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("botorch") is None, reason="BoTorch is an extra"),
    pytest.mark.usefixtures("as_after_botorchs_import"),
]

BOUNDS = torch.tensor([[2.0] * DIMENSIONS, [4.0] * DIMENSIONS], dtype=torch.float64)


def single_task(n: int = 50, outputs: int = 1, noise: float | None = None) -> Any:
    """Inputs in [2, 4], targets around 200: transforms that are left out show."""
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Normalize, Standardize

    x, y = data(n)
    targets = (50 * y + 100).unsqueeze(-1).expand(-1, outputs)
    model: Any = SingleTaskGP(
        2 + 2 * x,
        targets,
        None if noise is None else torch.full_like(targets, noise),
        input_transform=Normalize(DIMENSIONS),
        outcome_transform=Standardize(outputs),
    )
    model.covar_module.lengthscale = 0.4
    if noise is None:
        model.likelihood.noise = 0.05
    return model


def candidates(*batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return BOUNDS[0] + 2 * torch.rand(*batch, DIMENSIONS, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("noise", [None, 100.0])
@pytest.mark.parametrize("training", [False, True])
def test_paths_are_those_of_the_models_own_posterior(training: bool, noise: float | None) -> None:
    """Mean and deviation at six points by 1000 paths: within five standard errors, and 5 % for features."""
    model, count, x = single_task(noise=noise), 1000, candidates(6)
    model.train(training)
    values = sample_paths(model, count)(x)
    assert model.training == training
    with torch.no_grad():
        posterior = model.posterior(x)
    mean, deviation = posterior.mean.squeeze(-1), posterior.variance.squeeze(-1).sqrt()
    assert float(mean.min()) > 100
    assert ((values.mean(0) - mean).abs() < 5.5 * deviation / count**0.5).all()
    assert ((values.std(0) / deviation - 1).abs() < 5 / (2 * count) ** 0.5 + 0.05).all()


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 1), (2, 4)])
def test_shapes_are_those_of_botorchs_path_model(batch: tuple[int, ...]) -> None:
    from botorch.sampling.pathwise import get_matheron_path_model

    model, count = single_task(30), 4
    paths = sample_paths(model, count)
    x = candidates(*batch, 3)
    one, theirs = botorch_path_model(paths, 2), get_matheron_path_model(model)
    assert one(x).shape == theirs(x).shape == (*batch, 3, 1)
    torch.testing.assert_close(one(x).squeeze(-1), paths(x)[2], rtol=0, atol=1e-9)
    assert one.posterior(x).mean.shape == theirs.posterior(x).mean.shape
    assert (one.num_outputs, one.batch_shape) == (theirs.num_outputs, theirs.batch_shape)
    together, theirs = botorch_path_model(paths), get_matheron_path_model(model, torch.Size([count]))
    found = together(x)
    assert found.shape == theirs(x).shape
    assert (together.num_outputs, together.batch_shape) == (theirs.num_outputs, theirs.batch_shape)
    assert together._is_ensemble == theirs._is_ensemble
    own = x if x.dim() > 2 else x[None]
    for index in range(count):
        points = own[..., index if own.shape[-3] == count else 0, :, :]
        torch.testing.assert_close(found[..., index, :, 0], paths(points)[index], rtol=0, atol=1e-9)


def test_thompson_sampling_by_optimize_acqf() -> None:
    """The maximum of one path: no random point is above it, and its value is the path's."""
    from botorch.acquisition import PosteriorMean
    from botorch.optim import optimize_acqf

    paths = sample_paths(single_task(), 2)
    acquisition = PosteriorMean(botorch_path_model(paths, 1))
    point, found = optimize_acqf(acquisition, BOUNDS, q=1, num_restarts=3, raw_samples=64)
    assert found is not None
    value = found.item()
    assert bool(((BOUNDS[0] <= point) & (point <= BOUNDS[1])).all())
    assert value == pytest.approx(float(paths(point)[1]), abs=1e-6)
    assert value >= float(paths(candidates(2000))[1].max()) - 1e-6


def test_botorchs_optimiser_of_posterior_samples() -> None:
    """All paths at once, each with points of its own."""
    from botorch.utils.sampling import optimize_posterior_samples

    paths = sample_paths(single_task(), 3)
    points, values = optimize_posterior_samples(botorch_path_model(paths), BOUNDS, raw_samples=64, num_restarts=3)
    assert (points.shape, values.shape) == ((3, DIMENSIONS), (3, 1))
    highest = paths(candidates(500)).max(1).values
    assert (values.squeeze(-1) >= highest - 1e-6).all()
    torch.testing.assert_close(values.squeeze(-1), paths(points).diagonal(), rtol=0, atol=1e-9)


def test_what_is_refused() -> None:
    from botorch.models import ModelListGP

    with pytest.raises(ValueError, match="several outputs"):
        sample_paths(single_task(20, outputs=2), 2)
    with pytest.raises(ValueError, match="of a model list, take every model"):
        sample_paths(ModelListGP(single_task(20)), 2)
    paths = sample_paths(single_task(20), 3)
    with pytest.raises(ValueError, match="for 3 paths"):
        botorch_path_model(paths)(candidates(2, 1))
    with pytest.raises(IndexError):
        botorch_path_model(paths, 3)


def test_leave_one_out_in_the_units_of_the_targets() -> None:
    """One target against a model of all others with the same parameters."""
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Log

    model = single_task()
    found = leave_one_out(model)
    x, y = data(50)
    targets = 50 * y + 100
    torch.testing.assert_close(found.targets, targets)
    model.train()  # whose inputs are not transformed
    standard, others = model.train_targets.clone(), torch.arange(50) != 5
    model.set_train_data(model.train_inputs[0][others], standard[others], strict=False)
    model.eval()
    with torch.no_grad():
        told = model.posterior((2 + 2 * x)[5:6], observation_noise=True)
    assert float(found.mean[5]) == pytest.approx(float(told.mean), rel=1e-6)
    assert float(found.variance[5]) == pytest.approx(float(told.variance), rel=1e-5)
    unlike = SingleTaskGP(2 + 2 * x, targets.unsqueeze(-1), outcome_transform=Log())
    with pytest.raises(ValueError, match="not a shift"):
        leave_one_out(unlike)
