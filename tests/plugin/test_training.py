"""Loss and gradient of one training step, for every supported model, against the host and against dense float64."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import pytest
import torch
from linear_operator.operators import DenseLinearOperator, DiagLinearOperator

from gp_rangeformer import settings
from gp_rangeformer.report import SolveReport
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import (
    DIM,
    GP,
    KERNELS,
    LIKELIHOODS,
    MEANS,
    Problem,
    build,
    data,
    dense_covariance,
    exact_path,
    flat_gradient,
    marginal_log_likelihood,
    plain_probes,
    probe_gradient,
    probe_surrogate,
    rangeformer_path,
    relative,
    spread_hyperparameters,
)

BATCHES = [(), (2,)]
batches = pytest.mark.parametrize("batch", BATCHES, ids=["single", "batch"])


def check_exact(problem: Problem) -> SolveReport:
    """The exact path returns the host's loss and gradient."""
    loss, gradient = problem.loss_and_gradient()
    with exact_path() as reports:
        ours, our_gradient = problem.loss_and_gradient()
    assert [(r.operation, r.solver, r.reason) for r in reports] == [("inv_quad_logdet", "exact", Reason.EXACT_SMALL)]
    assert ours == pytest.approx(loss, rel=1e-10, abs=1e-12)
    assert relative(our_gradient, gradient) < 1e-8
    return reports[0]


def check_rangeformer(problem: Problem) -> SolveReport:
    """The RangeFormer path: quadratic term tight, log determinant inside its interval, gradient that of its probes."""
    mean, covariance = dense_covariance(problem)
    difference, covariance = (problem.y - mean).unsqueeze(-1).detach(), covariance.detach()
    inv_quad = float((difference * torch.linalg.solve(covariance, difference)).sum())
    logdet = float(torch.logdet(covariance).sum())
    points = difference[..., 0].numel()
    n = covariance.shape[-1]
    expected = probe_gradient(problem)
    with rangeformer_path() as reports, plain_probes():
        loss, gradient = problem.loss_and_gradient()
    (report,) = reports
    assert (report.operation, report.solver, report.reason) == ("inv_quad_logdet", "rangeformer", Reason.CONVERGED)
    assert report.iterations > 1, "the preconditioner alone solved it: the test shows nothing about the solver"
    assert report.residual <= 1e-7
    assert report.logdet is not None
    assert report.logdet_interval is not None
    assert report.logdet_statistical is not None
    assert report.logdet_interval.contains(logdet)
    assert report.logdet_interval.contains(report.logdet)
    half = 0.5 * report.logdet_statistical.width
    assert abs(report.logdet - logdet) <= 1.5 * half  # 95 % of the probes' draws stay within 1.0
    assert half < 0.1 * points
    constant = points * math.log(2 * math.pi)
    assert 2 * n * loss == pytest.approx(inv_quad + report.logdet + constant, rel=1e-9, abs=1e-8)
    assert relative(gradient, expected) < 1e-6
    return report


@batches
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_exact_path_returns_the_hosts_loss_and_gradient(kernel: str, batch: tuple[int, ...]) -> None:
    report = check_exact(build(kernel, batch=batch))
    assert report.batch_shape == batch


@batches
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_rangeformer_path_returns_the_dense_loss_and_the_gradient_of_its_probes(
    kernel: str, batch: tuple[int, ...]
) -> None:
    report = check_rangeformer(build(kernel, batch=batch))
    assert report.batch_shape == batch


@pytest.mark.parametrize("check", [check_exact, check_rangeformer])
@batches
@pytest.mark.parametrize("mean", ["linear", "zero"])
def test_every_mean_trains(mean: str, batch: tuple[int, ...], check: Any) -> None:
    check(build(mean=mean, batch=batch))


@pytest.mark.parametrize("check", [check_exact, check_rangeformer])
@batches
@pytest.mark.parametrize("likelihood", [name for name in LIKELIHOODS if name != "gaussian"])
def test_every_likelihood_trains(likelihood: str, batch: tuple[int, ...], check: Any) -> None:
    check(build(likelihood=likelihood, batch=batch))


@pytest.mark.parametrize("check", [check_exact, check_rangeformer])
def test_two_batch_dimensions_train(check: Any) -> None:
    assert check(build(batch=(2, 2), n=110)).batch_shape == (2, 2)


def test_the_probe_gradient_approaches_the_exact_gradient_as_probes_grow() -> None:
    problem = build("matern12")
    _, exact = problem.loss_and_gradient()
    errors = []
    for probes in (2, 100):
        with rangeformer_path(probes=probes), plain_probes():
            _, gradient = problem.loss_and_gradient()
        errors.append(relative(gradient, exact))
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("kernel", ["rbf", "product", "spectral_mixture"])
def test_where_the_range_nearly_spans_the_kernel_the_gradient_is_nearly_exact(kernel: str) -> None:
    problem = build(kernel)
    _, exact = problem.loss_and_gradient()
    with rangeformer_path(rank=90), settings.solver(adaptive_rank=False):
        _, gradient = problem.loss_and_gradient()
    with rangeformer_path(rank=90), settings.solver(adaptive_rank=False), plain_probes():
        _, plain = problem.loss_and_gradient()
    assert relative(gradient, exact) < 0.3 * relative(plain, exact)
    assert relative(gradient, exact) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", [exact_path, rangeformer_path], ids=["exact", "rangeformer"])
def test_float32_agrees_with_float64(path: Any, dtype: torch.dtype) -> None:
    reference = build("matern12")
    loss, _ = reference.loss_and_gradient()
    expected = probe_gradient(reference)
    problem = build("matern12", dtype=dtype)
    arguments = {} if path is exact_path else {"tolerance": 1e-4}
    with path(**arguments) as reports, plain_probes():
        value = problem.loss()
        value.backward()
    assert value.dtype == dtype
    assert reports[0].solver == ("exact" if path is exact_path else "rangeformer")
    assert reports[0].dtype == str(dtype).removeprefix("torch.")
    assert value.item() == pytest.approx(loss, abs=1e-4 if path is exact_path else 0.02)
    if path is rangeformer_path:
        assert relative(flat_gradient(problem.model), expected) < 1e-3


@pytest.mark.parametrize("path", [exact_path, rangeformer_path], ids=["exact", "rangeformer"])
def test_one_kernel_and_several_label_vectors_are_one_system_with_several_columns(path: Any) -> None:
    x, y, test_x = data(150)
    labels = torch.stack([y, y.flip(0), y**2])
    model = GP(
        x, labels, LIKELIHOODS["gaussian"](y, torch.Size()), MEANS["zero"](torch.Size()), KERNELS["rbf"](torch.Size())
    )
    problem = Problem(model.double(), x, labels, test_x)
    problem.likelihood.noise = 0.05
    mll = marginal_log_likelihood(model)

    def losses() -> torch.Tensor:
        model.train()
        return -mll(model(x), labels)

    expected = losses()
    with path() as reports:
        found = losses()
    assert found.shape == expected.shape == (3,)
    assert reports[0].columns == 3
    assert reports[0].batch_shape in ((), (1,))
    offsets = found - expected
    if path is exact_path:
        assert offsets.abs().max() < 1e-10
    else:
        assert reports[0].solver == "rangeformer"
        assert offsets.std() < 1e-8  # the quadratic terms are tight, the one log determinant is shared
        assert offsets.abs().max() < 0.05


class TwoKernels(GP):
    """Adds lazy kernels in forward, as users do, instead of building an AdditiveKernel."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood, MEANS["constant"](torch.Size()), KERNELS["rbf"](torch.Size()))
        self.second = KERNELS["matern12"](torch.Size())

    def forward(self, x: torch.Tensor) -> Any:
        covariance = self.covar_module(x) + 0.5 * self.second(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), covariance)


@pytest.mark.parametrize("check", [check_exact, check_rangeformer])
def test_lazies_added_in_forward_train(check: Any) -> None:
    x, y, test_x = data(150)
    model: Any = TwoKernels(x, y, LIKELIHOODS["gaussian"](y, torch.Size())).double()
    spread_hyperparameters(model)
    model.likelihood.noise = 0.05
    check(Problem(model, x, y, test_x))


class DeepKernel(GP):
    def __init__(self, x: torch.Tensor, y: torch.Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood, MEANS["constant"](torch.Size()), KERNELS["rbf"](torch.Size()))
        self.features = torch.nn.Sequential(torch.nn.Linear(DIM, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> Any:
        features = self.features(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(features))


@pytest.mark.parametrize("check", [check_exact, check_rangeformer])
def test_gradients_reach_the_feature_extractor_of_a_deep_kernel(check: Any) -> None:
    x, y, test_x = data(150)
    model: Any = DeepKernel(x, y, LIKELIHOODS["gaussian"](y, torch.Size())).double()
    model.covar_module.base_kernel.lengthscale = 0.2
    model.likelihood.noise = 0.05
    check(Problem(model, x, y, test_x))
    weight = model.features[0].weight.grad
    assert weight is not None
    assert float(weight.norm()) > 1e-3


@pytest.mark.parametrize("path", [exact_path, rangeformer_path], ids=["exact", "rangeformer"])
def test_the_gradient_reaches_targets_and_inputs(path: Any) -> None:
    problem = build("matern52")
    problem.x, problem.y = problem.x.clone().requires_grad_(), problem.y.clone().requires_grad_()
    problem.model.set_train_data(problem.x, problem.y, strict=False)
    leaves = (problem.x, problem.y)
    surrogate = problem.loss() if path is exact_path else probe_surrogate(problem)
    expected = torch.autograd.grad(surrogate, leaves)
    with path() as reports, plain_probes():
        found = torch.autograd.grad(problem.loss(), leaves)
    assert reports[0].solver == ("exact" if path is exact_path else "rangeformer")
    assert relative(found[0], expected[0]) < 1e-6
    assert relative(found[1], expected[1]) < 1e-6


def test_a_kernel_matrix_built_by_hand_trains() -> None:
    x, y, _ = data(150)
    lengthscale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    noise = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def log_prob() -> torch.Tensor:
        kernel = torch.exp(-0.5 * (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1) / lengthscale**2)
        covariance = DenseLinearOperator(kernel) + DiagLinearOperator(noise.expand(150))
        return gpytorch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)

    expected = torch.autograd.grad(log_prob(), (lengthscale, noise))
    with exact_path() as reports:
        found = torch.autograd.grad(log_prob(), (lengthscale, noise))
    assert reports[0].solver == "exact"
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("path", [exact_path, rangeformer_path], ids=["exact", "rangeformer"])
def test_second_derivatives_are_the_hosts(path: Any) -> None:
    def hessian_row(problem: Problem) -> torch.Tensor:
        parameters = list(problem.model.parameters())
        gradient = torch.autograd.grad(problem.loss(), parameters, create_graph=True)
        row = torch.autograd.grad(torch.cat([g.reshape(-1) for g in gradient]).sum(), parameters)
        return torch.cat([g.reshape(-1) for g in row])

    problem = build("ard")
    expected = hessian_row(problem)
    with path() as reports:
        found = hessian_row(problem)
    assert reports[0].solver == ("exact" if path is exact_path else "rangeformer")
    assert relative(found, expected) < 1e-8


def test_backward_twice_over_a_kept_graph_adds_the_same_gradient() -> None:
    for path in (exact_path, rangeformer_path):
        problem = build()
        with path():
            loss = problem.loss()
        loss.backward(retain_graph=True)
        once = flat_gradient(problem.model)
        loss.backward()
        torch.testing.assert_close(flat_gradient(problem.model), 2 * once)


def test_training_without_a_gradient_answers_the_same_value() -> None:
    problem = build()
    with rangeformer_path():
        expected = problem.loss().item()
        settings_before = settings.current()
        with torch.no_grad():
            assert problem.loss().item() == pytest.approx(expected, abs=1e-9)
        with torch.inference_mode():
            assert problem.loss().item() == pytest.approx(expected, abs=1e-9)
        assert settings.current() == settings_before


@pytest.mark.parametrize("kernel", ["matern32", "linear_plus_rbf"])
def test_a_value_in_inference_mode_does_not_spoil_the_steps_after_it(kernel: str) -> None:
    problem = build(kernel, n=150)
    with rangeformer_path(tolerance=1e-3, predictor="rows"):
        with torch.inference_mode():
            before = problem.loss().item()
        for _ in range(3):
            problem.loss().backward()
        assert problem.loss().item() == pytest.approx(before, abs=0.01)
