"""Probes in whitened coordinates: the gradient that they give, what they are solved from, and what the step reports."""

from __future__ import annotations

import dataclasses
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

import gp_rangeformer
from gp_rangeformer import Certified, settings
from gp_rangeformer.kernels.contract import DenseWeight, ThinWeight, contract
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.gradient_weight import WhitenedWeight
from gp_rangeformer.solvers.predictive_means import mean_solve
from gp_rangeformer.solvers.probes import Probes
from gp_rangeformer.system.linear_system import LinearSystem
from tests.preconditioner.test_vecchia import preconditioned, rough
from tests.system.systems import points, targets

N, NOISE = 300, 1e-3


@pytest.fixture(scope="module")
def whitened() -> tuple[LinearSystem, VecchiaPreconditioner]:
    linear_system, fused = rough(N, NOISE)
    return linear_system, preconditioned(linear_system, fused, 20, 24)


def signs(count: int, seed: int = 0, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, (n, count), generator=generator) * 2 - 1).double()


def weight_of(linear_system: LinearSystem, probes: Probes) -> WhitenedWeight:
    dense, rhs = linear_system.to_dense(), targets(N, 2)
    nystrom = nystrom_preconditioner(linear_system, Landmarks(torch.arange(20)))
    solutions, probe_solutions = torch.linalg.solve(dense, rhs), torch.linalg.solve(dense, probes.rhs)
    weight = probes.weight(nystrom, linear_system.noise, solutions, probe_solutions)
    assert isinstance(weight, WhitenedWeight)
    return weight


def test_the_right_hand_sides_are_whitened_signs(whitened) -> None:
    _, vecchia = whitened
    probes = Probes.whitened(signs(6), vecchia)
    torch.testing.assert_close(vecchia.root_solve(probes.rhs), probes.signs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(probes.near, vecchia.solve(probes.rhs), rtol=1e-9, atol=1e-9)


def test_all_sign_vectors_of_a_hadamard_matrix_give_the_exact_inverse() -> None:
    """Their outer products average to the identity: what is left is P^-1 + (A^-1 - P^-1)."""
    n = 128
    linear_system, fused = rough(n, NOISE)
    vecchia = preconditioned(linear_system, fused, 10, 12)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < n:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    probes, dense = Probes.whitened(hadamard, vecchia), linear_system.to_dense()
    nothing = torch.zeros(n, 1, dtype=torch.float64)
    assert probes.near is not None
    left = torch.linalg.solve(dense, probes.rhs) - probes.near
    unscaled = torch.zeros(n, dtype=torch.float64)
    weight = WhitenedWeight.of_vecchia(vecchia, linear_system.noise, nothing, probes.near, left, unscaled)
    one = torch.ones(1, dtype=torch.float64)
    inverse = torch.linalg.inv(dense)
    torch.testing.assert_close(weight.dense(one, one[0]), inverse, rtol=1e-8, atol=1e-8 * float(inverse.abs().max()))


@pytest.mark.parametrize(("name", "gain"), [("lengthscale", 3.0), ("noise", 3.0), ("outputscale", 1.0)])
def test_an_answer_is_nearer_to_the_exact_gradient_than_with_plain_probes(whitened, name, gain) -> None:
    """``gain``: of the standard deviation, at least. z'A^-1 K z = n - z'A^-1 D z makes plain probes good at the scale
    of K where the noise is small; whitened ones are not worse."""
    linear_system, vecchia = whitened
    dense = linear_system.to_dense()
    inverse = torch.linalg.inv(dense)
    nothing, one = torch.zeros(N, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    eye = torch.eye(N, dtype=torch.float64)
    moved = rough(N, NOISE, x=points(N, 3) / 1.001)[0].to_dense() - dense
    direction = {"lengthscale": 1000 * moved, "noise": NOISE * eye, "outputscale": dense - NOISE * eye}[name]
    errors: dict[str, list[float]] = {"plain": [], "whitened": []}
    for seed in range(20):
        z = signs(16, seed)
        probes = Probes.whitened(z, vecchia).imaged(linear_system)
        nystrom = nystrom_preconditioner(linear_system, Landmarks(vecchia.landmarks))
        solved = torch.linalg.solve(dense, probes.rhs)
        found = probes.weight(nystrom, linear_system.noise, nothing, solved).dense(one, one[0])
        plain = torch.linalg.solve(dense, z) @ z.mT / 16
        errors["plain"].append(float(((plain - inverse) * direction).sum()) ** 2)
        errors["whitened"].append(float(((found - inverse) * direction).sum()) ** 2)
    assert gain**2 * sum(errors["whitened"]) < sum(errors["plain"])


def test_every_form_of_the_weight_is_the_same_matrix(whitened) -> None:
    linear_system, vecchia = whitened
    weight = weight_of(linear_system, Probes.whitened(signs(8), vecchia).imaged(linear_system))
    g_inv_quad, g_logdet = torch.tensor([0.5, -2.0]).double(), torch.tensor(1.5).double()
    thin, dense = weight.thin(g_inv_quad, g_logdet), weight.dense(g_inv_quad, g_logdet)
    torch.testing.assert_close(thin.own_diagonal(), dense.diagonal(), rtol=1e-9, atol=1e-9)
    control = weight.control().symmetric()
    identity = torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(control, vecchia.solve(identity), rtol=1e-9, atol=1e-9 * float(control.abs().max()))
    trace = float((control.diagonal() * linear_system.noise).sum())
    assert weight.control_trace(linear_system.noise) == pytest.approx(trace, rel=1e-9)
    points = linear_system.points
    assert points is not None
    for how in ("compiled", "tensors"):
        with settings.fused_kernels(how), torch.no_grad():
            by_parts = contract(points.expression, points.arguments, thin, torch.float64)
            by_matrix = contract(points.expression, points.arguments, DenseWeight(dense), torch.float64)
        for one, other in zip(by_parts, by_matrix, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * float(other.abs().max()))


def test_a_weight_without_a_conditional_part_is_what_it_was(whitened) -> None:
    linear_system, vecchia = whitened
    weight = weight_of(linear_system, Probes.whitened(signs(8), vecchia).imaged(linear_system))
    thin = weight.thin(torch.ones(2).double(), torch.ones(()).double())
    without = dataclasses.replace(thin, conditional=None)
    assert thin.conditional is not None
    assert isinstance(without, ThinWeight)
    difference = thin.symmetric() - without.symmetric()
    torch.testing.assert_close(
        difference, thin.conditional.formed(), rtol=1e-9, atol=1e-9 * float(difference.abs().max())
    )


def test_the_trace_of_the_inverse_is_estimated_from_what_is_solved(whitened) -> None:
    linear_system, vecchia = whitened
    dense = linear_system.to_dense()
    exact = float(torch.linalg.inv(dense).trace())
    for probes in (Probes(signs(64), signs(64)), Probes.whitened(signs(64), vecchia)):
        solutions = torch.linalg.solve(dense, probes.rhs)
        quadratic = (probes.rhs * solutions).sum(0)
        assert probes.inverse_trace(solutions, quadratic) == pytest.approx(exact, rel=0.1)


class Rough(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(1.5, ard_num_dims=3))

    def forward(self, x: Any) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))  # type: ignore[arg-type]


def late_in_a_fit(n: int, dtype: torch.dtype, noise: float) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    # The same numbers in every dtype.
    x = torch.rand(n, 3, generator=generator)
    y = torch.sin(5 * x).sum(1) + noise**0.5 * torch.randn(n, generator=generator)
    x, y = x.to(dtype), y.to(dtype)
    least = gpytorch.constraints.GreaterThan(1e-8)
    likelihood: Any = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=least).to(dtype)
    model: Any = Rough(x, y, likelihood).to(dtype)
    model.covar_module.base_kernel.lengthscale = 0.3
    model.covar_module.outputscale = 4.0
    likelihood.noise = noise
    return model.train(), gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)


def gradients(model: Any, mll: Any) -> Tensor:
    model.zero_grad()
    loss = -mll(model(model.train_inputs[0]), model.train_targets)
    loss.backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 1e-4), (torch.float32, 1e-4), (torch.float32, 1e-6)])
def test_late_in_a_fit_the_flag_is_certified_and_near_to_float64(dtype, noise) -> None:
    """1e-6 of noise beside a variance of 4: float32 products alone would round to more than the tolerance."""
    n = 1500
    exact_model, exact_mll = late_in_a_fit(n, torch.float64, noise)
    with settings.rangeformer(), settings.solver(gp_rangeformer.Exact()):
        exact = gradients(exact_model, exact_mll)
        report = gp_rangeformer.last_report()
        truth = report.mll
    model, mll = late_in_a_fit(n, dtype, noise)
    with settings.rangeformer(), settings.min_size(1000), gp_rangeformer.collect_reports() as reports:
        found = [gradients(model, mll) for _ in range(3)]
    assert truth is not None
    for gradient, report in zip(found, reports, strict=True):
        assert (report.solver, report.fell_back) == ("rangeformer", False)
        assert report.residual <= 0.01
        assert report.logdet_method == "lanczos"
        assert report.mll_interval is not None
        assert report.mll_interval.contains(truth)
        assert report.mll is not None
        assert abs(report.mll - truth) < 0.01 * n
        assert report.gradient is not None
        assert float((gradient - exact).norm() / exact.norm()) < max(0.05, 4 * report.gradient.relative)
    assert reports[-1].iterations < reports[0].iterations


def test_neighbours_leave_plain_probes_to_an_estimator_of_ones_own() -> None:
    model, mll = late_in_a_fit(1500, torch.float64, 1e-4)
    quadrature = settings.solver(logdet="quadrature")
    with settings.rangeformer(), settings.min_size(1000), quadrature, gp_rangeformer.collect_reports() as reports:
        gradients(model, mll)
    assert reports[0].logdet_method == "quadrature"


def test_without_neighbours_the_same_steps_are_harder() -> None:
    iterations = []
    for count in (0, 64):
        model, mll = late_in_a_fit(1500, torch.float32, 0.05)
        chosen = settings.solver(neighbours=count, logdet="lanczos")
        with settings.rangeformer(), settings.min_size(1000), chosen, gp_rangeformer.collect_reports() as reports:
            gradients(model, mll)
        iterations.append(reports[0].iterations)
    assert 2 * iterations[1] < iterations[0]


def test_a_step_in_inference_mode_leaves_neighbours_that_a_gradient_may_use() -> None:
    model, mll = late_in_a_fit(1500, torch.float32, 1e-4)
    with settings.rangeformer(), settings.min_size(1000), gp_rangeformer.collect_reports() as reports:
        with torch.inference_mode():
            mll(model(model.train_inputs[0]), model.train_targets)
        found = gradients(model, mll)
    assert [report.logdet_method for report in reports] == ["lanczos", "lanczos"]
    assert found.isfinite().all()
    assert found.norm() > 0


def test_pairs_of_probes_that_were_solved_beside_targets() -> None:
    """The same as those solved by themselves, whichever of them are known; their products have A^-1 for a mean."""
    own, _ = rough(N, NOISE)
    y = targets(N)
    solver = Certified(rank=20, neighbours=16, neighbours_above=0.0, tolerance=1e-6).for_predictions
    alone = solver.prepare(own, Memory()).inverse_pairs(64)
    prepared = solver.prepare(own, Memory())
    solution = mean_solve(prepared, y, wide=True)
    assert len(prepared.solved_probes) >= 2
    beside = prepared.inverse_pairs(64)
    assert alone is not None
    assert beside is not None
    torch.testing.assert_close(beside.vectors, alone.vectors, rtol=0, atol=0.02 * float(alone.vectors.abs().max()))
    torch.testing.assert_close(beside.images, own.matmul(beside.vectors))
    del prepared.solved_probes[0]  # the others are of later probes
    again = prepared.inverse_pairs(64)
    assert again is not None
    torch.testing.assert_close(again.vectors, alone.vectors, rtol=0, atol=0.02 * float(alone.vectors.abs().max()))
    inverse = torch.linalg.inv(own.to_dense(torch.float64))
    torch.testing.assert_close(solution.value, inverse @ y, rtol=0, atol=0.01 * float((inverse @ y).abs().max()))
    u, v = beside.vectors[:, :64], beside.vectors[:, 64:]
    terms = u * v
    off = (terms.mean(1) - inverse.diagonal()) / (terms.std(1) / 8)
    assert off.abs().mean() < 1.2  # 0.8 for normal ones
