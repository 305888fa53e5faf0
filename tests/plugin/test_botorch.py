"""BoTorch models: fitting, posteriors and their gradients, under the global settings that importing BoTorch leaves."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import gpytorch
import pytest
import torch
from linear_operator import settings as host_settings
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.system.reason import Reason
from tests.conftest import HOST_DEFAULTS
from tests.plugin.market import exact_path, flat_gradient, marginal_log_likelihood, rangeformer_path, relative

pytestmark = pytest.mark.usefixtures("predicts_small_systems")


@pytest.fixture(autouse=True)
def botorch_defaults(isolated: None) -> Iterator[None]:
    """The global settings that ``import botorch`` leaves behind; it sets them on the first import in a process only."""
    import botorch  # noqa: F401

    botorchs = [False, False, False, 6, 4096, 4096]
    for (setting, attribute, _), value in zip(HOST_DEFAULTS, botorchs, strict=True):
        setattr(setting, attribute, value)
    yield
    for setting, attribute, value in HOST_DEFAULTS:
        setattr(setting, attribute, value)


PATHS = {"exact": exact_path, "rangeformer": rangeformer_path}
paths = pytest.mark.parametrize("path", PATHS)


def training_data(n: int = 160, outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    columns = [torch.sin((3 + 3 * i) * x[:, i % 3]) + x[:, 1] for i in range(outputs)]
    return x, torch.stack(columns, -1) + 0.2 * torch.randn(n, outputs, generator=generator, dtype=torch.float64)


def single_task(outputs: int = 1) -> Any:
    from botorch.models import SingleTaskGP

    model: Any = SingleTaskGP(*training_data(outputs=outputs))
    model.likelihood.noise = 0.05
    model.covar_module.lengthscale = 0.4
    return model


def loss_and_gradient(model: Any) -> tuple[float, Tensor]:
    mll = marginal_log_likelihood(model)
    mll.train()
    model.zero_grad()
    loss = -mll(model(*model.train_inputs), model.train_targets, *model.train_inputs).sum()
    loss.backward()
    return loss.item(), flat_gradient(model)


def candidates(m: int = 5, q: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.rand(m, q, 3, generator=generator, dtype=torch.float64)


def fit(model: Any) -> Tensor:
    from botorch.fit import fit_gpytorch_mll

    mll = marginal_log_likelihood(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BoTorch's own, when maxiter is reached
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 15}})
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def test_botorchs_defaults_are_in_force_and_are_what_an_import_sets() -> None:
    def values() -> list[Any]:
        return [getattr(setting, attribute) for setting, attribute, _ in HOST_DEFAULTS]

    import botorch

    ours = values()
    assert host_settings.fast_computations.log_prob.off()
    for setting, attribute, value in HOST_DEFAULTS:
        setattr(setting, attribute, value)
    importlib.reload(botorch)
    assert values() == ours


@paths
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_loss_under_botorchs_defaults_is_answered(outputs: int, path: str) -> None:
    expected = loss_and_gradient(single_task(outputs))
    with PATHS[path]() as reports:
        found = loss_and_gradient(single_task(outputs))
    assert [(r.operation, r.solver) for r in reports] == [("inv_quad_logdet", path)]
    assert reports[0].batch_shape == (() if outputs == 1 else (2,))
    if path == "exact":
        assert found[0] == pytest.approx(expected[0], rel=1e-10)
        assert relative(found[1], expected[1]) < 1e-8
    else:
        assert found[0] == pytest.approx(expected[0], abs=0.05)
        assert relative(found[1], expected[1]) < 0.5


@pytest.mark.parametrize("outputs", [1, 2])
def test_fitting_is_answered_exactly_and_ends_where_botorchs_does(outputs: int) -> None:
    expected = fit(single_task(outputs))
    with rangeformer_path() as reports:
        found = fit(single_task(outputs))
    assert len(reports) >= 5
    assert {(r.solver, r.reason) for r in reports} == {("exact", Reason.EXACT_LINE_SEARCH)}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def posterior_quantities(model: Any, X: Tensor) -> dict[str, Tensor]:
    """Mean, variance, samples with fixed base samples, and the gradients that an acquisition function follows."""
    from botorch.sampling.normal import SobolQMCNormalSampler

    model.train()
    model.eval()
    X = X.clone().requires_grad_()
    posterior = model.posterior(X)
    samples = SobolQMCNormalSampler(torch.Size([4]), seed=3)(posterior)
    results = {"mean": posterior.mean, "variance": posterior.variance, "samples": samples}
    for name, tensor in list(results.items()):
        results[f"{name} gradient"] = torch.autograd.grad(tensor.sum(), X, retain_graph=True)[0]
    return results


@paths
@pytest.mark.parametrize("fast_pred_var", [True, False], ids=["love", "solve"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("q", [1, 3])
def test_posteriors_and_their_gradients_are_botorchs(q: int, outputs: int, fast_pred_var: bool, path: str) -> None:
    model = single_task(outputs)
    with gpytorch.settings.fast_pred_var(fast_pred_var):
        expected = posterior_quantities(model, candidates(q=q))
        with PATHS[path]() as reports:
            found = posterior_quantities(model, candidates(q=q))
    solvers = {report.solver for report in reports}
    assert path in solvers
    assert "gpytorch" not in solvers, [r.summary() for r in reports]
    for name, tensor in expected.items():
        assert relative(found[name], tensor) < 1e-4, name


@paths
def test_an_acquisition_function_is_botorchs(path: str) -> None:
    from botorch.acquisition import LogExpectedImprovement, qKnowledgeGradient
    from botorch.sampling.normal import SobolQMCNormalSampler

    model = single_task()

    def evaluate() -> list[Tensor]:
        model.train()
        model.eval()
        X = candidates().requires_grad_()
        improvement = LogExpectedImprovement(model, best_f=1.0)(X)
        sampler = SobolQMCNormalSampler(torch.Size([2]), seed=3)
        knowledge = qKnowledgeGradient(model, num_fantasies=2, sampler=sampler)(candidates(q=3))
        return [improvement, torch.autograd.grad(improvement.sum(), X)[0], knowledge]

    expected = evaluate()
    with PATHS[path]() as reports:
        found = evaluate()
    assert path in {report.solver for report in reports}
    for ours, host in zip(found, expected, strict=True):
        assert relative(ours, host) < 1e-3


@paths
def test_conditioning_and_fantasising_are_botorchs(path: str) -> None:
    from botorch.sampling.normal import SobolQMCNormalSampler

    model = single_task()

    def evaluate() -> list[Tensor]:
        model.train()
        model.eval()
        model.posterior(candidates(q=2))
        X = candidates(m=1, q=2).squeeze(0)
        conditioned = model.condition_on_observations(X, torch.ones(2, 1, dtype=torch.float64))
        fantasy = model.fantasize(X, SobolQMCNormalSampler(torch.Size([3]), seed=1))
        return [m.posterior(candidates(q=2)[0]).mean for m in (conditioned, fantasy)]

    expected = evaluate()
    with PATHS[path]() as reports:
        found = evaluate()
    assert path in {report.solver for report in reports}
    for ours, host in zip(found, expected, strict=True):
        assert relative(ours, host) < 1e-4


@paths
def test_a_list_of_models_trains_and_predicts(path: str) -> None:
    from botorch.models import ModelListGP, SingleTaskGP
    from gpytorch.mlls import SumMarginalLogLikelihood

    x, y = training_data(outputs=2)

    def run() -> list[Tensor]:
        model = ModelListGP(SingleTaskGP(x, y[:, :1]), SingleTaskGP(x[:140], y[:140, 1:]))
        mll: Any = SumMarginalLogLikelihood(model.likelihood, model)
        mll.train()
        loss = -mll(model(*model.train_inputs), model.train_targets)
        loss.backward()
        gradient = flat_gradient(model)
        model.eval()
        posterior = model.posterior(candidates(q=2))
        return [loss.detach(), gradient, posterior.mean.detach(), posterior.variance.detach()]

    expected = run()
    with PATHS[path]() as reports:
        found = run()
    assert [r.n for r in reports if r.operation == "inv_quad_logdet"] == [160, 140]
    assert "gpytorch" not in {report.solver for report in reports}
    for ours, host, slack in zip(found, expected, (0.05, 0.5, 1e-4, 1e-4), strict=True):
        assert relative(ours, host) < (1e-6 if path == "exact" else slack)


@pytest.mark.filterwarnings("ignore")
def test_a_kronecker_multitask_model_is_left_to_the_host() -> None:
    from botorch.models import KroneckerMultiTaskGP

    x, y = training_data(n=110, outputs=2)

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model = KroneckerMultiTaskGP(x, y)
        loss, gradient = loss_and_gradient(model)
        model.eval()
        posterior = model.posterior(candidates()[:, 0])
        return [torch.tensor(loss), gradient, posterior.mean.detach(), posterior.variance.detach()]

    expected = run()
    with rangeformer_path() as reports:
        found = run()
    assert {report.solver for report in reports} <= {"gpytorch"}
    for ours, host in zip(found, expected, strict=True):
        assert torch.equal(ours, host)


@paths
def test_a_multitask_model_with_a_task_feature_is_answered(path: str) -> None:
    from botorch.models import MultiTaskGP

    x, y = training_data()
    x = torch.cat([x, (torch.arange(160) % 2).double().unsqueeze(-1)], -1)

    def run() -> tuple[float, Tensor, Tensor]:
        torch.manual_seed(0)
        model = MultiTaskGP(x, y, task_feature=-1)
        loss, gradient = loss_and_gradient(model)
        model.eval()
        return loss, gradient, model.posterior(x[:4]).mean.detach()

    expected = run()
    with PATHS[path]() as reports:
        found = run()
    assert path in {report.solver for report in reports}
    assert found[0] == pytest.approx(expected[0], abs=1e-8 if path == "exact" else 0.05)
    assert relative(found[1], expected[1]) < (1e-6 if path == "exact" else 0.5)
    assert relative(found[2], expected[2]) < 1e-4


def test_fixed_noise_and_missing_data_models_are_answered_or_left() -> None:
    from botorch.models import SingleTaskGP

    x, y = training_data()
    noise = torch.linspace(0.01, 0.1, 160, dtype=torch.float64).unsqueeze(-1)

    def run() -> list[Tensor]:
        model = SingleTaskGP(x, y, train_Yvar=noise)
        loss, gradient = loss_and_gradient(model)
        model.eval()
        posterior = model.posterior(candidates())
        return [torch.tensor(loss), gradient, posterior.mean.detach(), posterior.variance.detach()]

    expected = run()
    with exact_path() as reports:
        found = run()
    assert {report.solver for report in reports} == {"exact"}
    for ours, host in zip(found, expected, strict=True):
        assert relative(ours, host) < 1e-7


def test_nan_during_a_fit_is_what_botorch_expects() -> None:
    """Its closure turns NanError into a NaN loss for the line search; any other error would end the fit."""
    from botorch.optim.utils import _handle_numerical_errors
    from linear_operator.utils.errors import NanError

    model = single_task()
    model.covar_module.raw_lengthscale.data.fill_(torch.nan)
    with settings.rangeformer(), pytest.raises(NanError) as caught:
        loss_and_gradient(model)
    import numpy as np

    value, gradient = _handle_numerical_errors(caught.value, x=np.zeros(3))
    assert np.isnan(value)
    assert np.isnan(gradient).all()
