"""Data of other kinds, and other starts: a fit never raises where BoTorch's does not, and never ends far below it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from gp_rangeformer.fit import botorch_optimizer, fit_mll
from gp_rangeformer.fit.objective import Objective
from gp_rangeformer.lab.bench import robust, robust_sets
from gp_rangeformer.lab.bench.small_tasks import botorch_conditions, has_botorch
from tests.fit.models import build, by_lbfgs, value

Drawn = tuple[Tensor, Tensor]
_BELOW = 0.01  # nats per point that a likelihood may lie below BoTorch's


def draw(n: int, d: int, seed: int = 0) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return x, (5 * x[:, 0]).sin() + x.sum(1) / d + 0.1 * noise


def series() -> Drawn:
    t = torch.linspace(0, 1, 100, dtype=torch.float64).unsqueeze(1)
    return t, (20 * t[:, 0]).sin() + t[:, 0] + 0.05 * draw(100, 1)[1]


def duplicates() -> Drawn:
    x, y = draw(40, 2)
    return x.repeat(2, 1), torch.cat([y, y + 0.1])


def constant_columns() -> Drawn:
    x, y = draw(60, 4)
    x[:, 2], x[:, 3] = 0.5, 0.0
    return x, y


def scaled(factor: float) -> Callable[[], Drawn]:
    def made() -> Drawn:
        x, y = draw(50, 3)
        return x, factor * y

    return made


def noise_alone() -> Drawn:
    return draw(60, 3)[0], torch.randn(60, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def without_noise() -> Drawn:
    x = draw(50, 2)[0]
    return x, (3 * x[:, 0]).sin() * x[:, 1]


def clusters() -> Drawn:
    x, y = draw(60, 2)
    return x * 1e-3 + (torch.arange(60) % 3).unsqueeze(1), y


def constant_target() -> Drawn:
    return draw(40, 2)[0], torch.zeros(40, dtype=torch.float64)


KINDS: dict[str, Callable[[], Drawn]] = {
    "a series": series,
    "duplicates": duplicates,
    "50 dimensions": lambda: draw(80, 50),
    "constant columns": constant_columns,
    "30 points": lambda: draw(30, 6),
    "5 points": lambda: draw(5, 2),
    "noise alone": noise_alone,
    "without noise": without_noise,
    "clusters": clusters,
    "a constant target": constant_target,
    "large targets": scaled(1e4),
    "small targets": scaled(1e-3),
}


@pytest.fixture(autouse=True)
def as_after_its_import() -> Iterator[None]:
    if not has_botorch():
        pytest.skip("BoTorch is an extra")
    with botorch_conditions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def single_task(x: Tensor, y: Tensor) -> Any:
    from botorch.models import SingleTaskGP

    model = SingleTaskGP(x, y.unsqueeze(-1))
    return ExactMarginalLogLikelihood(model.likelihood, model)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_data_ends_far_below_botorch(kind) -> None:
    from botorch.fit import fit_gpytorch_mll

    x, y = KINDS[kind]()
    best = value(fit_gpytorch_mll(single_task(x, y)))
    mll = single_task(x, y)
    fit_gpytorch_mll(mll, optimizer=botorch_optimizer)
    assert value(mll) >= best - _BELOW
    assert all(parameter.isfinite().all() for parameter in mll.parameters())


@pytest.mark.parametrize("seed", range(6))
def test_no_start_ends_far_below_lbfgs(seed) -> None:
    """Without priors, from starts a factor of e or so away in every parameter."""
    ends = []
    for fit in (fit_mll, by_lbfgs):
        mll = build(80)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in mll.parameters():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        fit(mll)
        ends.append(value(mll))
    assert ends[0] >= ends[1] - _BELOW


@pytest.mark.parametrize("kind", ["outliers", "heavy tails", "repeated rows"])
@pytest.mark.parametrize("bound", ["noise", "lengthscale"])
def test_a_fit_leaves_the_bound_that_an_earlier_one_has_ended_on(kind, bound) -> None:
    """As a loop does that fits again when data have come."""
    from botorch.fit import fit_gpytorch_mll

    x, y = robust_sets.KINDS[kind].data(80, 0)
    ends = []
    for fit in (fit_gpytorch_mll, fit_mll):
        mll = single_task(x, y)
        if bound == "noise":
            mll.likelihood.noise = 1e-4
        else:
            mll.model.covar_module.lengthscale = 0.025
        fit(mll)
        ends.append(value(mll))
    assert ends[1] >= ends[0] - _BELOW


@pytest.mark.parametrize(
    ("kind", "seed", "start"),
    [
        ("repeated rows and targets", 7, 0),  # average information has three times the curvature that is there
        ("ridge", 0, 102),  # three steps gain little because those before them have failed
    ],
)
def test_where_a_fit_ends_botorchs_gains_nothing_more(kind, seed, start) -> None:
    from botorch.fit import fit_gpytorch_mll

    mll = robust.build(*robust_sets.KINDS[kind].data(100, seed))
    if start:
        robust.move(mll, start)
    fit_mll(mll)
    end = value(mll)
    assert value(fit_gpytorch_mll(mll)) <= end + _BELOW


def test_a_prior_of_the_likelihood_counts_once() -> None:
    """In the curvature as in the value: GPyTorch's likelihood is the model's as well."""
    x, y = draw(30, 2)
    mll = single_task(x, y)
    with torch.no_grad():
        counted = sum(Objective(mll)._log_priors())
        added = mll._add_other_terms(torch.zeros((), dtype=torch.float64), ())
    assert float(counted) == pytest.approx(float(added), rel=1e-12)
