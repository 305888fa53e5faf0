"""What the plug-in leaves to the host is left entirely: the same bits, and a report that says why."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    GridInterpolationKernel,
    InducingPointKernel,
    LinearKernel,
    MultitaskKernel,
    RBFKernel,
    ScaleKernel,
)
from linear_operator import settings as host_settings
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.report import ReportCollection
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import GP, KERNELS, MEANS, Problem, build, data, exact_path, flat_gradient, rangeformer_path


def with_flag(run: Callable[[], Any], fast_log_prob: bool = True) -> tuple[Any, Any, ReportCollection]:
    """(flag off, flag on, reports of the second) of the same seeded computation."""
    with host_settings._fast_log_prob(fast_log_prob):
        torch.manual_seed(5)
        expected = run()
        torch.manual_seed(5)
        with rangeformer_path(tolerance=0.01) as reports:
            found = run()
    return expected, found, reports


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for ours, host in zip(found, expected, strict=True):
        assert torch.equal(ours, host)


def assert_declined(reports: ReportCollection, *reasons: Reason) -> None:
    assert {report.solver for report in reports} <= {"gpytorch"}, [r.summary() for r in reports]
    assert {report.reason for report in reports} <= set(reasons)


def step_and_predict(model: Any, y: Tensor, test_x: Tensor, mll: Any = None) -> list[Tensor]:
    """Loss, gradients, predictive mean and covariance of a model in its present state."""
    model.zero_grad()
    model.train()
    mll = mll if mll is not None else gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    loss = -mll(model(*model.train_inputs), y)
    loss.backward()
    results = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    model.eval()
    for fast_pred_var in (False, True):
        model.train()
        model.eval()
        with gpytorch.settings.fast_pred_var(fast_pred_var), torch.no_grad():
            prediction = model(test_x)
            results += [prediction.mean, prediction.covariance_matrix]
    return results


class Multitask(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, rank: int) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=2)
        self.covar_module = MultitaskKernel(RBFKernel(), num_tasks=2, rank=rank)

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("fast_log_prob", [True, False], ids=["gpytorch", "botorch"])
@pytest.mark.parametrize("max_cholesky_size", [800, 50], ids=["cholesky", "cg"])
@pytest.mark.parametrize("noise_rank", [0, 1])
def test_kronecker_multitask(noise_rank: int, max_cholesky_size: int, fast_log_prob: bool) -> None:
    x, y, test_x = data(110)
    targets = torch.stack([y, y.cos()], -1)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2, rank=noise_rank)
    model = Multitask(x, targets, likelihood, rank=1).double()
    with host_settings.max_cholesky_size(max_cholesky_size), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host's own, about negative variances of its approximations
        expected, found, reports = with_flag(lambda: step_and_predict(model, targets, test_x), fast_log_prob)
    assert_same_bits(found, expected)
    assert_declined(reports, Reason.OTHER_OPERATOR, Reason.STRUCTURED_KERNEL, Reason.TOO_SMALL)


def test_independent_multitask() -> None:
    class Independent(gpytorch.models.ExactGP):
        def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            b = torch.Size([2])
            self.mean_module, self.covar_module = MEANS["constant"](b), KERNELS["rbf"](b)

        def forward(self, x: Tensor) -> Any:
            batch = gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))
            return gpytorch.distributions.MultitaskMultivariateNormal.from_batch_mvn(batch)

    x, y, test_x = data(110)
    targets = torch.stack([y, y.cos()], -1)
    model = Independent(x, targets, gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2)).double()
    expected, found, reports = with_flag(lambda: step_and_predict(model, targets, test_x))
    assert_same_bits(found, expected)
    assert len(reports) > 0
    assert_declined(reports, Reason.STRUCTURED_KERNEL, Reason.OTHER_OPERATOR)


def structured(name: str, x: Tensor, likelihood: Any) -> Any:
    if name == "interpolated":
        return ScaleKernel(GridInterpolationKernel(RBFKernel(), grid_size=12, num_dims=3))
    if name == "inducing_points":
        return InducingPointKernel(ScaleKernel(RBFKernel()), inducing_points=x[:20].clone(), likelihood=likelihood)
    return LinearKernel()


@pytest.mark.parametrize("fast_log_prob", [True, False], ids=["gpytorch", "botorch"])
@pytest.mark.parametrize("kernel", ["interpolated", "inducing_points", "linear"])
def test_structured_kernels(kernel: str, fast_log_prob: bool) -> None:
    x, y, test_x = data(120)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = GP(x, y, likelihood, MEANS["constant"](torch.Size()), structured(kernel, x, likelihood)).double()
    expected, found, reports = with_flag(lambda: step_and_predict(model, y, test_x), fast_log_prob)
    assert_same_bits(found, expected)
    assert_declined(reports, Reason.OTHER_OPERATOR, Reason.STRUCTURED_KERNEL, Reason.CUSTOM_ROOT)


@pytest.mark.parametrize("strategy", ["whitened", "unwhitened"])
def test_variational_models(strategy: str) -> None:
    class Variational(gpytorch.models.ApproximateGP):
        def __init__(self, inducing: Tensor) -> None:
            distribution = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
            kind = (
                gpytorch.variational.VariationalStrategy
                if strategy == "whitened"
                else gpytorch.variational.UnwhitenedVariationalStrategy
            )
            super().__init__(kind(self, inducing, distribution))
            self.mean_module, self.covar_module = MEANS["constant"](torch.Size()), KERNELS["rbf"](torch.Size())

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    x, y, test_x = data(150)
    model = Variational(x[:30].clone()).double()
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def run() -> list[Tensor]:
        model.load_state_dict(state)
        model.variational_strategy.variational_params_initialized.fill_(0)
        model.zero_grad()
        model.train()
        elbo: Any = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(y))
        loss = -elbo(model(x), y)
        loss.backward()
        results = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        model.eval()
        with torch.no_grad():
            prediction = model(test_x)
        return [*results, prediction.mean, prediction.variance]

    torch.manual_seed(5)
    expected = run()
    torch.manual_seed(5)
    with settings.rangeformer(), collect_reports() as reports:  # at the default sizes: 30 inducing points are few
        found = run()
    assert_same_bits(found, expected)
    assert_declined(reports, Reason.TOO_SMALL, Reason.OTHER_OPERATOR)


def missing_targets() -> Problem:
    problem = build(n=130)
    problem.y = problem.y.clone()
    problem.y[::10] = torch.nan
    problem.model.set_train_data(problem.x, problem.y)
    return problem


@pytest.mark.parametrize("fast_log_prob", [True, False], ids=["gpytorch", "botorch"])
def test_the_nan_policy_mask(fast_log_prob: bool) -> None:
    problem = missing_targets()
    with gpytorch.settings.observation_nan_policy("mask"):
        expected, found, reports = with_flag(
            lambda: step_and_predict(problem.model, problem.y, problem.test_x), fast_log_prob
        )
    assert_same_bits(found, expected)
    assert torch.isfinite(found[0])
    assert len(reports) > 0
    assert_declined(reports, Reason.NAN_POLICY)


@pytest.mark.filterwarnings("ignore:Observation NaN policy 'fill'")
def test_the_nan_policy_fill() -> None:
    problem = missing_targets()

    def run() -> list[Tensor]:
        prediction = problem.predict()
        return [prediction.mean.detach(), prediction.covariance_matrix.detach()]

    with gpytorch.settings.observation_nan_policy("fill"):
        expected, found, reports = with_flag(run)
    assert_same_bits(found, expected)
    assert torch.isfinite(found[0]).all()
    assert len(reports) > 0
    assert_declined(reports, Reason.NAN_POLICY)


@pytest.mark.filterwarnings("ignore:The checkpointing feature is deprecated")
@pytest.mark.parametrize("fast_log_prob", [True, False], ids=["gpytorch", "botorch"])
def test_checkpointed_kernels(fast_log_prob: bool) -> None:
    problem = build(n=130)
    with gpytorch.beta_features.checkpoint_kernel(65), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found, reports = with_flag(
            lambda: [torch.tensor(problem.loss_and_gradient()[0]), problem.loss_and_gradient()[1]], fast_log_prob
        )
    assert_same_bits(found, expected)
    assert len(reports) > 0
    assert_declined(reports, Reason.CHECKPOINTED_KERNEL)


@pytest.mark.parametrize("path", [exact_path, rangeformer_path], ids=["exact", "rangeformer"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_with_fast_log_prob_off_eligible_models_are_answered_all_the_same(path: Any, batch: tuple[int, ...]) -> None:
    problem = build(batch=batch)
    with path():
        expected = problem.loss_and_gradient()
    with gpytorch.settings.fast_computations(log_prob=False), path() as reports:
        found = problem.loss_and_gradient()
        assert host_settings.fast_computations.log_prob.off()
    assert [report.operation for report in reports] == ["inv_quad_logdet"]
    assert reports[0].solver == ("exact" if path is exact_path else "rangeformer")
    assert found[0] == pytest.approx(expected[0], abs=1e-9)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-9)


def test_with_fast_log_prob_off_label_vectors_broadcast_as_with_it_on() -> None:
    problem = build(n=130)
    marginal = problem.likelihood(problem.model.train()(problem.x))
    for labels in (problem.y, torch.stack([problem.y, -problem.y]), problem.y.expand(2, 3, 130)):
        expected = marginal.log_prob(labels)
        with gpytorch.settings.fast_computations(log_prob=False), exact_path() as reports:
            found = marginal.log_prob(labels)
        assert [report.solver for report in reports] == ["exact"]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_with_fast_log_prob_off_a_declined_operator_is_said_to_be_declined() -> None:
    problem = build(n=50)
    with gpytorch.settings.fast_computations(log_prob=False):
        expected = problem.loss().detach()
        with settings.rangeformer(), collect_reports() as reports:
            found = problem.loss().detach()
    assert torch.equal(found, expected)
    assert [(r.operation, r.reason) for r in reports] == [("inv_quad_logdet", Reason.TOO_SMALL)]


@pytest.mark.parametrize("whose", [gpytorch.settings, host_settings], ids=["gpytorch", "linear_operator"])
def test_tracing(whose: Any) -> None:
    problem = build(n=130)
    problem.predict()

    def run() -> list[Tensor]:
        prediction = problem.predict()
        return [prediction.mean.detach(), prediction.variance.detach()]

    with whose.trace_mode():
        expected, found, reports = with_flag(run)
    assert_same_bits(found, expected)
    assert len(reports) > 0
    assert_declined(reports, Reason.TRACING)


def test_the_leave_one_out_likelihood() -> None:
    """It asks the operator for its Cholesky factor, which the flag does not reroute."""
    problem = build(n=130)
    mll: Any = gpytorch.mlls.LeaveOneOutPseudoLikelihood(problem.likelihood, problem.model)

    def run() -> list[Tensor]:
        problem.model.zero_grad()
        problem.model.train()
        loss = -mll(problem.model(problem.x), problem.y)
        loss.backward()
        return [loss.detach(), flat_gradient(problem.model)]

    with settings.fused_kernels(False):
        expected, found, reports = with_flag(run)
    assert_same_bits(found, expected)
    assert len(reports) == 0
    _, found, _ = with_flag(run)
    for ours, host in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, host, rtol=1e-9, atol=1e-12)
