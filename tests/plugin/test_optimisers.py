"""Training to the end: first-order optimisers, line searches, and the consistency of value and gradient."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gpytorch
import numpy as np
import pytest
import scipy.optimize
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import Problem, build, exact_path, flat_gradient, rangeformer_path

STEPS = 15


def train_adam(problem: Problem, steps: int = STEPS) -> list[float]:
    optimiser = torch.optim.Adam(problem.model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = problem.loss()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def final_loss(problem: Problem) -> float:
    """The exact loss where training ended, by the host."""
    with torch.no_grad():
        return problem.loss().item()


@pytest.mark.parametrize("kernel", ["matern32", "sum"])
@pytest.mark.parametrize("predictor", ["extrapolate", "galerkin", "previous", "none"])
def test_adam_reaches_the_hosts_loss(predictor: str, kernel: str) -> None:
    host = build(kernel)
    start = final_loss(host)
    train_adam(host)
    ours = build(kernel)
    with rangeformer_path(tolerance=0.01, probes=32, predictor=predictor) as reports:
        train_adam(ours)
    assert [(r.solver, r.reason) for r in reports] == [("rangeformer", Reason.CONVERGED)] * STEPS
    gain = start - final_loss(host)
    assert gain > 0.05
    assert final_loss(ours) < final_loss(host) + 0.05 * gain


def test_the_memory_saves_iterations_while_training() -> None:
    iterations = {}
    for predictor in ("extrapolate", "none"):
        with rangeformer_path(tolerance=0.01, predictor=predictor) as reports:
            train_adam(build("matern12"))
        iterations[predictor] = sum(report.iterations for report in reports)
    assert iterations["extrapolate"] < 0.7 * iterations["none"]


def test_adam_on_the_exact_path_takes_the_hosts_steps() -> None:
    host, ours = build(), build()
    expected = train_adam(host)
    with exact_path() as reports:
        found = train_adam(ours)
    assert len(reports) == STEPS
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def train_torch_lbfgs(problem: Problem) -> None:
    optimiser = torch.optim.LBFGS(problem.model.parameters(), max_iter=8, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    optimiser.step(closure)


def scipy_objective(problem: Problem) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    def objective(vector: np.ndarray) -> tuple[float, np.ndarray]:
        vector_to_parameters(torch.from_numpy(vector), problem.model.parameters())
        problem.model.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss.item(), flat_gradient(problem.model).numpy()

    return objective


def train_scipy(problem: Problem) -> None:
    start = parameters_to_vector(problem.model.parameters()).detach().numpy()
    result = scipy.optimize.minimize(
        scipy_objective(problem), start, jac=True, method="L-BFGS-B", options={"maxiter": 8}
    )
    vector_to_parameters(torch.from_numpy(result.x), problem.model.parameters())


@pytest.mark.parametrize("train", [train_torch_lbfgs, train_scipy])
def test_line_searches_are_answered_exactly_and_end_where_the_hosts_do(train: Callable[[Problem], None]) -> None:
    host, ours = build("ard"), build("ard")
    train(host)
    with rangeformer_path(tolerance=0.01) as reports:
        train(ours)
        inside = len(reports)
        ours.loss()  # outside of the line search again
    assert inside >= 8
    assert {(r.solver, r.reason) for r in list(reports)[:inside]} == {("exact", Reason.EXACT_LINE_SEARCH)}
    assert (reports[-1].solver, reports[-1].reason) == ("rangeformer", Reason.CONVERGED)
    found, expected = (parameters_to_vector(p.model.parameters()).detach() for p in (ours, host))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_line_searches_may_be_answered_stochastically_on_request() -> None:
    with rangeformer_path(tolerance=0.01) as reports, settings.exact_line_search(False):
        train_torch_lbfgs(build())
    assert {report.solver for report in reports} == {"rangeformer"}


def directional(problem: Problem, step: float) -> tuple[float, float]:
    """(central difference, directional derivative) of the loss along a random direction of the hyperparameters."""
    parameters = list(problem.model.parameters())
    start = parameters_to_vector(parameters).detach().clone()
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(7), dtype=start.dtype)
    _, gradient = problem.loss_and_gradient()
    values = []
    for sign in (1, -1):
        vector_to_parameters(start + sign * step * direction, parameters)
        values.append(problem.loss().item())
    vector_to_parameters(start, parameters)
    return (values[0] - values[1]) / (2 * step), float(gradient @ direction)


@pytest.mark.parametrize("kernel", ["matern32", "ard", "sum", "spectral_mixture"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_value_and_gradient_are_consistent_with_an_exact_log_determinant(kernel: str, batch: tuple[int, ...]) -> None:
    problem = build(kernel, batch=batch)
    with rangeformer_path(), settings.solver(Exact()), collect_reports() as reports:
        difference, derivative = directional(problem, 1e-5)
    assert {(r.solver, r.reason) for r in reports} == {("exact", Reason.EXACT_ASKED)}
    assert abs(derivative) > 1e-3
    assert difference == pytest.approx(derivative, rel=1e-6)


def test_the_quadratic_term_alone_is_consistent_on_the_rangeformer_path() -> None:
    """Its value is 2 b'x - x'Ax, whose gradient at fixed x is the returned one: no tight solve is needed."""
    problem = build("matern12")

    def quadratic() -> torch.Tensor:
        problem.model.train()
        marginal = problem.likelihood(problem.model(problem.x))
        difference = (problem.y - marginal.mean).unsqueeze(-1)
        return marginal.lazy_covariance_matrix.evaluate_kernel().inv_quad_logdet(difference, logdet=False)[0]

    problem.loss = quadratic  # type: ignore[method-assign]
    with rangeformer_path(tolerance=1e-3, predictor="none") as reports:
        difference, derivative = directional(problem, 1e-4)
    assert {report.solver for report in reports} == {"rangeformer"}
    assert difference == pytest.approx(derivative, rel=1e-3)


@pytest.mark.parametrize("fast_log_prob", [True, False], ids=["gpytorch", "botorch"])
def test_a_prior_on_a_hyperparameter_reaches_the_loss(fast_log_prob: bool) -> None:
    def problem_with_prior() -> Any:
        problem = build()
        kernel = problem.model.covar_module.base_kernel
        kernel.register_prior("prior", gpytorch.priors.GammaPrior(3.0, 6.0), "lengthscale")
        return problem

    expected = problem_with_prior().loss_and_gradient()
    with gpytorch.settings.fast_computations(log_prob=fast_log_prob), exact_path() as reports:
        found = problem_with_prior().loss_and_gradient()
    assert len(reports) == 1
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-8, atol=1e-10)


def reasons_of(objective: Callable[[], torch.Tensor]) -> set[Reason]:
    """Of one evaluation in another thread."""
    with ThreadPoolExecutor(1) as pool, rangeformer_path(tolerance=0.01) as reports:
        pool.submit(objective).result()
    return {report.reason for report in reports}


def test_a_line_search_that_waits_for_another_thread_is_answered_exactly() -> None:
    problem, found = build("ard"), set()
    optimiser = torch.optim.LBFGS(problem.model.parameters(), max_iter=2)

    def closure() -> float:
        found.update(reasons_of(problem.loss))
        return 0.0

    optimiser.step(closure)
    assert found == {Reason.EXACT_LINE_SEARCH}
    assert Reason.EXACT_LINE_SEARCH not in reasons_of(problem.loss)


def test_a_line_search_that_evaluates_its_own_objective_is_nobody_elses() -> None:
    problem, inside, done = build("ard"), threading.Event(), []

    def closure() -> float:
        inside.set()
        while not done:
            math.sqrt(2.0)
        return 0.0

    searching = threading.Thread(target=torch.optim.LBFGS(problem.model.parameters(), max_iter=1).step, args=(closure,))
    searching.start()
    assert inside.wait(60)
    try:
        assert Reason.EXACT_LINE_SEARCH not in reasons_of(problem.loss)
    finally:
        done.append(True)
        searching.join()
