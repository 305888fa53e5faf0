"""A prediction makes the training points' kernel matrix once, and nobody can tell but by seconds and memory."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest
import torch
from gpytorch.constraints import Positive

from gp_rangeformer.kernels.fused import FusedKernel
from tests.plugin.market import Problem, build, exact_path, rangeformer_path

pytestmark = pytest.mark.usefixtures("predicts_small_systems")

N = 150


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the dense matrices that fused kernels make from now on."""
    gc.collect()  # models of earlier tests, whose matrices are the same
    sizes: list[int] = []
    dense = FusedKernel.dense

    def counted(self: FusedKernel) -> torch.Tensor:
        sizes.append(self.n)
        return dense(self)

    monkeypatch.setattr(FusedKernel, "dense", counted)
    return sizes


def moments(problem: Problem, test_x: torch.Tensor | None = None) -> list[torch.Tensor]:
    problem.model.eval()  # the caches of earlier predictions stay
    with torch.no_grad():
        found = problem.model(problem.test_x if test_x is None else test_x)
        return [found.mean, found.variance]


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def training_matrix(problem: Problem) -> torch.Tensor:
    """The one that GPyTorch keeps with the model's prediction strategy."""
    strategy: Any = problem.model.prediction_strategy
    return strategy.train_prior_dist.lazy_covariance_matrix.evaluate_kernel().to_dense()


@pytest.mark.parametrize("path", [exact_path, rangeformer_path])
@pytest.mark.parametrize("kernel", ["matern32", "ard", "nested"])
def test_mean_and_variance_are_solved_with_one_matrix(path, kernel, made: list[int]) -> None:
    expected = moments(build(kernel, n=N))
    problem = build(kernel, n=N)
    assert not made
    with path():
        close(moments(problem), expected)
        assert made.count(N) == 1
        other = problem.test_x.flip(0)
        close(moments(problem, other), [moment.flip(0) for moment in expected])
    assert made.count(N) == 1


def test_predictions_with_a_graph_have_graphs_of_their_own(made: list[int]) -> None:
    """Each is freed by its own backward pass."""
    gradients = []
    for flag in (False, True):
        problem = build(n=N)
        with exact_path() if flag else torch.enable_grad():
            found = problem.predict()
            problem.model.zero_grad()
            found.variance.sum().backward(retain_graph=not flag)
            gradients.append([p.grad for p in problem.model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-8)
    assert made.count(N) == 2


@pytest.mark.parametrize("name", ["base_kernel.raw_lengthscale", "raw_outputscale"])
@pytest.mark.parametrize("transformed", [True, False])
def test_hyperparameters_that_changed_since_give_another_matrix(name, transformed, made: list[int]) -> None:
    """As in GPyTorch, where the mean keeps to the former ones and the covariance does not."""
    results = []
    for flag in (False, True):
        problem = build(n=N)
        kernel = problem.model.covar_module
        if not transformed:  # the kernel's arguments are the parameters themselves
            itself = Positive(transform=None, inv_transform=None)  # type: ignore[arg-type]
            kernel.register_constraint("raw_outputscale", itself)
            kernel.base_kernel.register_constraint("raw_lengthscale", itself)
            kernel.raw_outputscale.data.fill_(1.2)
            kernel.base_kernel.raw_lengthscale.data.fill_(0.4)
        with exact_path() if flag else torch.no_grad():
            moments(problem)
            kernel.get_parameter(name).data += 0.5
            results.append(moments(problem))
    close(results[1], results[0])
    assert made.count(N) == 2


def test_a_matrix_that_somebody_changed_is_not_taken(made: list[int]) -> None:
    problem = build(n=N)
    with exact_path():
        expected = moments(problem)
        training_matrix(problem).mul_(2)
        close(moments(problem), expected)
    assert made.count(N) == 2


def test_another_model_with_other_inputs_has_a_matrix_of_its_own(made: list[int]) -> None:
    first, second = build(n=N), build(n=N, seed=1)
    expected = moments(build(n=N, seed=1))
    with exact_path():
        moments(first)
        close(moments(second), expected)
    assert made.count(N) == 2


def test_two_evaluations_of_a_kernel_are_two_matrices() -> None:
    """What a user holds is his own."""
    problem = build(n=N)
    with exact_path(), torch.no_grad():
        first, second = (problem.model.covar_module(problem.x).to_dense() for _ in range(2))
    first.fill_(7)
    assert not bool((second == 7).any())


FIT = """
import torch
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare import parse_solvers
from gp_rangeformer.lab.compare.fit import fit_by_adam

torch.set_num_threads(1)
data = datasets.load("robot_arm", n=6000, n_test=150)
(spec,) = parse_solvers("rangeformer", "float32")
small = datasets.load("robot_arm", n=200, n_test=5)  # what is imported on the way is no memory of a fit
fit_by_adam(small, datasets.split_of(small), spec, steps=2)
held = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
result = fit_by_adam(data, datasets.split_of(data), spec, steps=2).result
import resource
highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(held, highest, result.peak_memory, result.peak_memory_with_prediction)
"""


@pytest.mark.big
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux's own counters")
def test_the_memory_that_fit_prints_is_the_process_s() -> None:
    run = subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True, check=True, timeout=300)
    held, highest, training, printed = map(float, run.stdout.split())
    assert printed == pytest.approx(highest - held, rel=0.1)
    matrix = 4 * 6000**2 / 2**20
    assert matrix < training < 2.5 * matrix  # one, and the thin ones; leave-one-out factorises beside it
