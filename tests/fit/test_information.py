"""Average information against dense formulas, and a mean that is fitted to the other parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import ConstantMean, LinearMean, ZeroMean
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from torch import Tensor

from gp_rangeformer import Certified, Exact, settings
from gp_rangeformer.fit.columns import derivatives
from gp_rangeformer.fit.evaluated import Evaluated
from gp_rangeformer.fit.objective import Anchor, Objective
from tests.fit.models import DIMENSIONS, build, matern, value

N = 120


@pytest.fixture(autouse=True)
def exactly() -> Iterator[None]:
    with settings.rangeformer(), settings.solver(Exact()):
        yield


KERNELS: dict[str, Kernel] = {
    "matern": matern(),
    "sum": ScaleKernel(RBFKernel(ard_num_dims=DIMENSIONS)) + ScaleKernel(RQKernel(active_dims=(0,))),
    "periodic": ScaleKernel(PeriodicKernel(active_dims=(1,)) * RBFKernel()),
}


def jacobian(objective: Objective, phi: Tensor, of) -> Tensor:
    """Central differences of ``of()`` with respect to phi."""
    columns = []
    for index in range(len(phi)):
        ends = []
        for h in (1e-5, -1e-5):
            moved = phi.clone()
            moved[index] += h
            objective.parameters.write(moved)
            ends.append(of())
        columns.append((ends[0] - ends[1]) / 2e-5)
    objective.parameters.write(phi)
    return torch.stack(columns, -1)


def dense(mll: Any) -> Tensor:
    model = mll.model
    with torch.no_grad(), settings.rangeformer(False):
        model.train()
        return mll.likelihood(model(*model.train_inputs)).covariance_matrix


def mean_of(mll: Any) -> Tensor:
    with torch.no_grad():
        return mll.model.mean_module(*mll.model.train_inputs).clone()  # not a view of the parameter


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("mean", [ZeroMean, ConstantMean, lambda: LinearMean(DIMENSIONS)])
def test_it_is_what_dense_matrices_say(name, mean) -> None:
    mll = build(N, kernel=KERNELS[name], mean=mean())
    objective = Objective(mll)
    point = objective(objective.parameters.read())
    phi, seen = point.phi, point.seen
    assert seen is not None
    follows = seen.follows
    assert int(follows.sum()) == sum(p.numel() for p in mll.model.mean_module.parameters())
    quadratic = objective.quadratic_model(point)
    assert quadratic is not None
    covariance, residual = dense(mll), mll.model.train_targets - mean_of(mll)
    moved = jacobian(objective, phi, lambda: dense(mll))
    shifts = jacobian(objective, phi, lambda: mean_of(mll))[:, follows]
    inverse = covariance.inverse()
    projected = inverse
    if follows.any():
        projected = inverse - inverse @ shifts @ (shifts.mT @ inverse @ shifts).inverse() @ shifts.mT @ inverse
    columns = torch.einsum("ijp,j->ip", moved, inverse @ residual)
    expected = 0.5 * columns.mT @ projected @ columns / N
    own = ~follows
    scale = expected.abs().max()
    # Central differences with 1e-5 leave 1e-10 of the third derivative, and rounding of 1e-11 of an entry.
    assert (quadratic.curvature[own][:, own] - expected[own][:, own]).abs().max() <= 1e-6 * scale


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_are_those_of_the_value_with_the_mean_following(name) -> None:
    objective = Objective(build(N, kernel=KERNELS[name]))
    phi = objective.parameters.read() + 0.3
    point = objective(phi)
    assert abs(point.value - value(objective.mll)) <= 1e-10
    for index in range(len(phi)):
        ends = []
        for h in (1e-4, -1e-4):
            moved = point.phi.clone()
            moved[index] += h
            ends.append(objective(moved).value)
        # h^2 times a third derivative of order one.
        assert abs((ends[0] - ends[1]) / 2e-4 - point.gradient[index]) <= 1e-7


def test_the_fitted_mean_is_the_best_one() -> None:
    mll = build(N, mean=LinearMean(DIMENSIONS))
    objective = Objective(mll)
    point = objective(objective.parameters.read())
    covariance, x = dense(mll), mll.model.train_inputs[0]
    design = torch.cat([x, torch.ones(N, 1, dtype=torch.float64)], 1)
    inverse = covariance.inverse()
    best = (design.mT @ inverse @ design).inverse() @ design.mT @ inverse @ mll.model.train_targets
    mean = mll.model.mean_module
    found = torch.cat([mean.weights.detach().reshape(-1), mean.bias.detach().reshape(-1)])
    # The rough solve is exact here; normal equations of condition 1e3.
    assert torch.allclose(found, best, atol=1e-8)
    assert objective(point.phi).value == pytest.approx(point.value, abs=1e-12)


def test_a_mean_with_a_prior_is_a_parameter_like_others() -> None:
    mean = ConstantMean(constant_prior=NormalPrior(0.0, 0.1))
    objective = Objective(build(N, mean=mean))
    point = objective(objective.parameters.read())
    assert point.seen is not None
    assert not point.seen.follows.any()
    quadratic = objective.quadratic_model(point)
    assert quadratic is not None
    assert torch.linalg.eigvalsh(quadratic.curvature).min() > -1e-12


def test_priors_curve_what_they_are_on() -> None:
    kernel = matern()
    kernel.register_prior("outputscale_prior", GammaPrior(2.0, 0.15), "outputscale")
    kernel.base_kernel.register_prior("lengthscale_prior", LogNormalPrior(0.5, 1.0), "lengthscale")
    with_priors = Objective(build(N, kernel=kernel))
    without = Objective(build(N))
    phi = with_priors.parameters.read()
    curved = with_priors.quadratic_model(with_priors(phi))
    plain = without.quadratic_model(without(phi))
    assert curved is not None
    assert plain is not None
    extra = (curved.curvature - plain.curvature) * N
    names = with_priors.parameters.names
    for index, name in enumerate(names):
        if "lengthscale" in name:
            # log N(log l; 0.5, 1) - log l: minus its second derivative in log l is one.
            assert extra[index, index] == pytest.approx(1.0, rel=1e-9)
        if "outputscale" in name:
            # Gamma(2, 0.15): log s - 0.15 s, in log s minus its second derivative is 0.15 s.
            scale = float(kernel.outputscale.detach())
            assert extra[index, index] == pytest.approx(0.15 * scale, rel=1e-6)  # 0.15 in float32


class Unknown(MaternKernel):
    """A kernel that has no fused form: its class is another one."""


def test_what_has_no_fused_form_is_differentiated_by_differences() -> None:
    known, unknown = Objective(build(N)), Objective(build(N, kernel=ScaleKernel(Unknown(1.5, ard_num_dims=DIMENSIONS))))
    start, models = known(known.parameters.read()).phi, []  # with the mean fitted
    for objective in (known, unknown):
        with settings.exact_size(1):  # as in a fit
            point = objective(start)
            model = objective.quadratic_model(point)
        assert model is not None
        models.append(model)
        assert (objective.parameters.read() - point.phi).abs().max() <= 1e-12
    kernel = [index for index, name in enumerate(known.parameters.names) if "constant" not in name]
    first, second = (model.curvature[kernel][:, kernel] for model in models)
    # There the mean's constant is a parameter like others, and half of its part is in the matrix: compare what is left.
    constant = [index for index, name in enumerate(known.parameters.names) if "constant" in name]
    cross, inner = models[1].curvature[kernel][:, constant], models[1].curvature[constant][:, constant]
    second = second - cross @ inner.inverse() @ cross.mT
    assert torch.allclose(first, second, rtol=1e-4, atol=1e-6 * float(first.abs().max()))


def test_given_noise_and_an_anchor() -> None:
    noise = torch.full((N,), 0.05, dtype=torch.float64)
    objective = Objective(build(N, likelihood=FixedNoiseGaussianLikelihood(noise)))
    phi = objective.parameters.read()
    plain = objective(phi)
    anchored = Objective(objective.mll, Anchor(phi + 1, 2.0))
    point: Evaluated = anchored(phi)
    away = (point.phi - phi - 1) / 2 * ~point_follows(objective, phi)
    assert point.value == pytest.approx(plain.value - 0.5 * float(away.square().sum()) / N, abs=1e-12)
    assert torch.allclose(point.gradient, plain.gradient - away / (2 * N), atol=1e-12)
    quadratic, bare = anchored.quadratic_model(point), objective.quadratic_model(objective(phi))
    assert quadratic is not None
    assert bare is not None
    extra = (quadratic.curvature - bare.curvature).diagonal()[~point_follows(objective, phi)]
    assert torch.allclose(extra, torch.full_like(extra, 0.25 / N), atol=1e-12)


def point_follows(objective: Objective, phi: Tensor) -> Tensor:
    seen = objective(phi).seen
    assert seen is not None
    return seen.follows


def test_derivatives_of_a_vector() -> None:
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    columns = derivatives(weight[0] * x + weight[1].square(), [weight])
    assert torch.allclose(columns, torch.stack([x, torch.full_like(x, 4.0)], 1))
    assert not derivatives(x, [weight]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certified_solves_give_the_same_curvature(dtype) -> None:
    """To the share that a rough solve may miss: one per cent of every c'A^-1 c."""
    n = 300
    kernel = ScaleKernel(RBFKernel(ard_num_dims=DIMENSIONS, lengthscale_constraint=GreaterThan(1e-3)))
    exact = Objective(build(n, kernel=kernel, dtype=dtype))
    phi = exact.parameters.read()
    expected = exact.quadratic_model(exact(phi))
    with settings.min_size(100), settings.solver(Certified(gradient_tolerance=float("inf"))):
        certified = Objective(exact.mll)
        found = certified.quadratic_model(certified(phi))
    assert expected is not None
    assert found is not None
    roots = expected.curvature.diagonal().clamp_min(1e-300).sqrt()
    difference = (found.curvature - expected.curvature) / (roots * roots.unsqueeze(1))
    assert difference.abs().max() <= 0.02
