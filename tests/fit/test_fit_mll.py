"""Whole fits: where they end, what they say of it, and what interrupts them."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import warnings
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel, SpectralMixtureKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import ConstantMean, LinearMean
from gpytorch.priors import GammaPrior, LogNormalPrior

from gp_rangeformer import settings
from gp_rangeformer.fit import FitError, Record, fit_mll
from gp_rangeformer.fit.fit_mll import TOLERANCE
from gp_rangeformer.fit.objective import Objective
from gp_rangeformer.fit.parameters import FreeParameters
from gp_rangeformer.fit.subsets import level_sizes, thinned
from tests.fit.models import DIMENSIONS, Model, build, by_lbfgs, data, matern, value

N = 250  # without a level


class Unknown(MaternKernel):
    """Its class is another one than the plug-in knows."""


def with_priors() -> Any:
    kernel = matern()
    kernel.register_prior("outputscale_prior", GammaPrior(2.0, 0.15), "outputscale")
    kernel.base_kernel.register_prior("lengthscale_prior", LogNormalPrior(0.5, 1.0), "lengthscale")
    return kernel


MODELS = {
    "matern": lambda n: build(n),
    "rbf": lambda n: build(n, kernel=ScaleKernel(RBFKernel(ard_num_dims=DIMENSIONS))),
    "priors": lambda n: build(n, kernel=with_priors()),
    "linear mean": lambda n: build(n, mean=LinearMean(DIMENSIONS)),
    "given noise": lambda n: build(
        n, likelihood=FixedNoiseGaussianLikelihood(torch.full((n,), 0.02, dtype=torch.float64))
    ),
    "no fused form": lambda n: build(n, kernel=ScaleKernel(Unknown(1.5, ard_num_dims=DIMENSIONS))),
    "a sum": lambda n: build(n, kernel=ScaleKernel(MaternKernel(2.5)) + ScaleKernel(RBFKernel(active_dims=(0,)))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("flag", [True, False])
def test_it_ends_where_lbfgs_ends_or_higher(name, flag) -> None:
    best = by_lbfgs(MODELS[name](N))
    mll = MODELS[name](N)
    with settings.rangeformer(flag):
        result = fit_mll(mll)
    # A Newton decrement of the tolerance may miss as much again where the model underrates what is left.
    assert value(mll) >= best - 3 * TOLERANCE
    assert result.value == pytest.approx(value(mll), abs=1e-9)
    assert result.converged
    assert result.decrement < TOLERANCE
    assert result.error == 0
    assert result.noise == 0
    assert result.method == "average information"


@pytest.mark.parametrize(("n", "least", "solver"), [(1100, None, "exact"), (1600, 1500, "rangeformer")])
def test_levels_and_certified_evaluations_of_a_float32_model(n, least, solver) -> None:
    best = fit_mll(build(n), tolerance=1e-6).value  # exact, in float64
    mll = build(n, dtype=torch.float32)
    with settings.rangeformer(), contextlib.nullcontext() if least is None else settings.min_size(least):
        result = fit_mll(mll)
    wide = build(n)
    wide.load_state_dict({name: tensor.double() for name, tensor in mll.state_dict().items()})
    assert value(wide) >= best - 1e-3
    assert abs(value(wide) - result.value) <= result.error + 1e-3
    assert set(result.evaluations) == {*level_sizes(n), n}
    assert result.evaluations[n] <= 15
    assert result.report is not None
    assert not result.report.fell_back
    assert result.report.solver == solver


def test_the_same_call_gives_the_same_bits() -> None:
    ends = []
    for _ in range(2):
        mll = build(1100, dtype=torch.float32)
        with settings.rangeformer(), settings.min_size(1000):
            ends.append((fit_mll(mll), mll.state_dict()))
    (first, state), (second, again) = ends
    assert [row.value for row in first.history] == [row.value for row in second.history]
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_settings_and_modes_are_put_back() -> None:
    mll = build(120)
    chosen = settings.solver.value()
    fit_mll(mll)
    assert settings.rangeformer.off()
    assert settings.solver.value() is chosen
    assert mll.model.train_targets.dtype == torch.float64
    assert len(mll.model.train_targets) == 120


def test_a_model_that_was_made_in_inference_mode_fails_with_its_first_error() -> None:
    """And not with that of putting back what nobody could change."""
    with torch.inference_mode():
        mll = build(20)
    with pytest.raises(FitError, match="evaluation 1 on 20 points"):
        fit_mll(mll)


def test_fixed_parameters_stay() -> None:
    mll = build(150)
    mll.model.covar_module.raw_outputscale.requires_grad_(False)
    before = mll.model.covar_module.raw_outputscale.clone()
    fit_mll(mll)
    assert torch.equal(mll.model.covar_module.raw_outputscale, before)


def test_many_parameters_are_fitted_by_secants() -> None:
    class Deep(Model):
        def __init__(self, x, y, likelihood) -> None:
            super().__init__(x, y, likelihood, gpytorch.means.ConstantMean(), ScaleKernel(RBFKernel()))
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(DIMENSIONS, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))

        def forward(self, x):
            return super().forward(self.net(x))

    x, y = data(150)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, Deep(x, y, likelihood)).double()
    before = value(mll)
    result = fit_mll(mll, max_evaluations=60, levels=False)
    assert result.method == "secants"
    assert value(mll) > before + 0.5
    assert result.value == pytest.approx(value(mll), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_where_average_information_leads_nowhere_secants_go_on(seed: int) -> None:
    """The likelihood of a spectral mixture bends within a thousandth of a parameter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(60, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(12 * x[:, 0]) + 0.5 * torch.sin(31 * x[:, 0])
    y = y + 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)
    kernel = SpectralMixtureKernel(num_mixtures=2).double()
    torch.manual_seed(seed)
    kernel.initialize_from_data(x, y)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, Model(x, y, likelihood, ConstantMean(), kernel).double())
    result = fit_mll(mll)
    assert result.converged, result.summary()
    further = value(mll)
    assert by_lbfgs(mll) <= further + 1e-3


def test_a_batch_of_models() -> None:
    x, y = data(80)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=torch.Size([2]))
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size([2]))
    kernel = ScaleKernel(MaternKernel(1.5, batch_shape=torch.Size([2])), batch_shape=torch.Size([2]))
    model = Model(x.expand(2, -1, -1), torch.stack([y, -y + 1]), likelihood, mean, kernel)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model).double()
    with settings.rangeformer():
        result = fit_mll(mll, max_evaluations=80)
    assert result.method == "secants"
    single = build(80, kernel=ScaleKernel(MaternKernel(1.5)))
    best = by_lbfgs(single)
    assert result.value >= 2 * best - 2e-3


def test_several_tasks() -> None:
    class Tasks(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood) -> None:
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=2)
            self.covar_module = gpytorch.kernels.MultitaskKernel(MaternKernel(2.5), num_tasks=2, rank=1)

        def forward(self, x):
            mean: Any = self.mean_module(x)
            return gpytorch.distributions.MultitaskMultivariateNormal(mean, self.covar_module(x))

    x, y = data(40)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2)
    torch.manual_seed(0)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(
        likelihood, Tasks(x, torch.stack([y, 1 - y], 1), likelihood)
    ).double()
    before = value(mll)
    with settings.rangeformer():
        result = fit_mll(mll, max_evaluations=60)
    assert result.method == "secants"
    assert value(mll) > before + 0.3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_in_evaluation_mode(mode) -> None:
    mll = build(120)
    best = fit_mll(build(120)).value
    mll.eval()
    with mode(), settings.rangeformer():
        result = fit_mll(mll)
    assert not any(part.training for part in mll.modules())
    assert result.value == pytest.approx(best, abs=1e-6)
    assert result.method == "average information"


def test_a_good_start_is_not_given_up_for_what_subsets_say() -> None:
    mll = build(1100)
    first = fit_mll(mll)
    again = fit_mll(mll)
    assert again.value >= first.value - 1e-9
    assert again.history[0].value == pytest.approx(first.value, abs=1e-6)


def test_an_interrupt_leaves_the_best_so_far() -> None:
    mll, seen = build(200), []

    def stop(record: Record) -> None:
        seen.append(record)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the model has the best parameters so far"):
        fit_mll(mll, callback=stop)
    assert value(mll) == pytest.approx(max(row.value for row in seen), abs=1e-9)


def test_a_callback_finds_the_parameters_of_every_evaluation_in_the_model() -> None:
    """On subsets too: what it is told is the likelihood of those points at those parameters."""
    mll, seen, places = build(1100), [], set()
    chosen = torch.randperm(1100, generator=torch.Generator().manual_seed(0))[:220]
    start, own = FreeParameters(mll).read(), ["constant" not in name for name in FreeParameters(mll).names]

    def see(record: Record) -> None:
        phi = FreeParameters(mll).read()
        if record.points == 220:
            places.add(tuple(phi.tolist()))
            away = (phi - start)[own]  # near which all but the mean is held
            expected = value(thinned(mll, chosen)) - 0.5 * float(away.square().sum()) / 220
        else:
            expected = value(mll)
        seen.append((record.value, expected))

    result = fit_mll(mll, callback=see)
    assert len(places) > 3
    assert result.evaluations[1100] > 3
    for told, expected in seen:
        assert told == pytest.approx(expected, abs=1e-9)
    plain = build(1100)
    assert fit_mll(plain).value == result.value
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(mll.parameters(), plain.parameters(), strict=True))


def test_small_subsets_are_passed_over_when_asked() -> None:
    assert level_sizes(6000) == [240, 1200]
    points = []

    def stop(record: Record) -> None:
        points.append(record.points)
        if record.points == 1200:
            raise KeyboardInterrupt

    mll = build(6000)
    with settings.rangeformer(), pytest.raises(KeyboardInterrupt):
        fit_mll(mll, callback=stop, levels=300)
    assert points == [6000, 1200]


@pytest.mark.parametrize("points", [220, 1100])
def test_what_a_callback_raises_is_its_own(points) -> None:
    """On a subset too."""

    def stop(record: Record) -> None:
        if record.points == points:
            raise RuntimeError("enough")

    mll = build(1100)
    with pytest.raises(RuntimeError, match=r"^enough$"):
        fit_mll(mll, callback=stop)


def test_a_model_that_cannot_be_copied_is_fitted_without_subsets() -> None:
    mll = build(1100)
    mll.model.lock = threading.Lock()
    result = fit_mll(mll, max_evaluations=3)
    assert set(result.evaluations) == {1100}
    assert "cannot be copied (TypeError)" in result.summary()


def test_a_subset_that_fails_costs_an_evaluation_and_not_the_fit(monkeypatch) -> None:
    original = Objective.__call__

    def failing(self: Objective, phi: torch.Tensor) -> Any:
        if self.points == 220 and self.evaluations == 2:
            raise RuntimeError
        return original(self, phi)

    monkeypatch.setattr(Objective, "__call__", failing)
    seen: list[Record] = []
    result = fit_mll(build(1100), callback=seen.append)
    assert "subsets left out: RuntimeError" in result.summary()
    plain = fit_mll(build(1100), levels=False)
    whole = [row.value for row in result.history if row.points == 1100]
    # The first once more, with the mean that it has found.
    assert whole[1:] == pytest.approx([row.value for row in plain.history], abs=1e-9)


def test_a_failure_names_the_evaluation() -> None:
    mll = build(200)
    mll.model.train_targets[3] = math.nan
    before = {name: tensor.clone() for name, tensor in mll.state_dict().items()}
    with (
        settings.rangeformer(),
        pytest.raises(FitError, match=r"evaluation 1 on 200 points: .*the parameters are what"),
    ):
        fit_mll(mll)
    assert all(torch.equal(before[name], tensor) for name, tensor in mll.state_dict().items())


def test_time_and_evaluations_are_limits() -> None:
    result = fit_mll(build(200), max_evaluations=3)
    assert result.evaluations[200] == 3
    assert result.reason == "evaluations used up"
    assert not result.converged
    late = fit_mll(build(1100), timeout=1e-9)
    assert late.reason == "out of time"
    assert late.evaluations == {1100: 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be a positive number"),
        ({"tolerance": math.nan}, "tolerance must be a positive number"),
        ({"timeout": -1.0}, "timeout must be a positive number"),
        ({"max_evaluations": 1}, "at least 2"),
        ({"max_evaluations": True}, "at least 2"),
        ({"levels": 0}, "levels must be True, False or a positive number"),
        ({"levels": -1}, "levels must be True, False or a positive number"),
    ],
)
def test_bad_arguments(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_mll(build(20), **options)


@pytest.mark.parametrize("flag", [False, True])
def test_sums_and_models_without_data(flag) -> None:
    mll = build(20)
    total = gpytorch.mlls.SumMarginalLogLikelihood(mll.likelihood, gpytorch.models.IndependentModelList(mll.model))
    with settings.rangeformer(flag), pytest.raises(ValueError, match="fit the parts of a sum one by one"):
        fit_mll(total)
    empty = Model(None, None, mll.likelihood, gpytorch.means.ZeroMean(), matern())
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(mll.likelihood, empty)
    with settings.rangeformer(flag), pytest.raises(ValueError, match="no training data"):
        fit_mll(mll)


def test_a_subset_is_a_copy_of_its_own() -> None:
    noise = torch.linspace(0.01, 0.1, 60, dtype=torch.float64)
    mll = build(60, likelihood=FixedNoiseGaussianLikelihood(noise.clone()))
    index = torch.tensor([5, 2, 9])
    small = thinned(mll, index)
    assert torch.equal(small.model.train_targets, mll.model.train_targets[index])
    assert torch.equal(small.likelihood.noise_covar.noise, noise[index])
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    assert len(mll.model.train_targets) == 60
    assert torch.equal(mll.likelihood.noise_covar.noise, noise)
    assert not torch.equal(small.model.covar_module.raw_outputscale, mll.model.covar_module.raw_outputscale)


def test_levels_are_a_fraction_of_the_whole() -> None:
    for n in (100, 1000, 4000, 36_000, 10**6):
        sizes = [*level_sizes(n), n]
        assert sizes == sorted(sizes)
        assert all(small * 5 <= large for small, large in itertools.pairwise(sizes))


def test_what_a_result_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit_mll(build(120))
    assert "converged" in result.summary()
    assert "on 120 points" in result.summary()
    table = result.table().splitlines()
    assert len(table) == 1 + len(result.history)
    assert "accepted" in table[1]
    assert result.seconds >= result.history[-1].seconds > 0
