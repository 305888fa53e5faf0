"""Where the graph of a step ends: grad mode, frozen kernels, parameters changed in place, threads, inference mode."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from gpytorch.constraints import Positive
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from tests.plugin.market import build, exact_path, rangeformer_path
from tests.plugin.test_batches import Asked, answered

UNTRANSFORMED: Any = None  # the parameter itself is the value
batches = pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batch"])


@batches
def test_a_kernel_called_without_a_graph_leaves_the_noise_its_gradient(batch) -> None:
    """As GPyTorch: the grad mode of the kernel's call is the kernel's."""

    def gradient() -> Tensor:
        asked = Asked(of_kernel=batch, of_y=batch)
        with torch.no_grad():
            prior = asked.prior()
        asked.likelihood(prior).log_prob(asked.y).sum().backward()
        return asked.likelihood.noise_covar.raw_noise.grad

    expected = gradient()
    assert expected is not None
    with answered():
        found = gradient()
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@batches
@pytest.mark.parametrize("way", ["create_graph", "is_grads_batched"])
def test_second_derivatives_and_batched_gradients_beside_a_frozen_kernel_are_gpytorchs(way, batch) -> None:
    def answer() -> Tensor:
        asked = Asked(of_kernel=batch, of_y=batch)
        asked.model["kernel"].requires_grad_(False)
        asked.x.requires_grad_(False)
        raw = asked.likelihood.noise_covar.raw_noise
        loss = asked.values().sum()
        if way == "is_grads_batched":
            return torch.autograd.grad(loss, raw, torch.tensor([1.0, -2.0]).double(), is_grads_batched=True)[0]
        (first,) = torch.autograd.grad(loss, raw, create_graph=True)
        return torch.autograd.grad(first.sum(), raw)[0]

    expected = answer()
    with answered():
        torch.testing.assert_close(answer(), expected, rtol=1e-8, atol=0)


@batches
def test_a_parameter_changed_in_place_before_the_backward_pass_is_an_error_not_another_gradient(batch) -> None:
    def gradient() -> Any:
        asked = Asked(of_kernel=batch, of_y=batch)
        kernel = asked.model["kernel"]
        kernel.register_constraint("raw_outputscale", Positive(transform=UNTRANSFORMED, inv_transform=UNTRANSFORMED))
        kernel.raw_outputscale.data.fill_(0.7)
        loss = asked.values().sum()
        with torch.no_grad():
            kernel.raw_outputscale.mul_(5.0)
        return torch.autograd.grad(loss, list(kernel.parameters()), create_graph=True)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient()
    with exact_path(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient()


def test_nor_is_it_on_the_solver_s_path() -> None:
    """Here it is the first derivative already that comes out of the changed parameter."""

    def gradient() -> Any:
        problem = build("rbf", n=150)
        kernel = problem.model.covar_module
        kernel.register_constraint("raw_outputscale", Positive(transform=UNTRANSFORMED, inv_transform=UNTRANSFORMED))
        kernel.raw_outputscale.data.fill_(0.7)
        loss = problem.loss()
        with torch.no_grad():
            kernel.raw_outputscale.mul_(5.0)
        return torch.autograd.grad(loss, list(kernel.parameters()))

    with rangeformer_path(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient()


@pytest.mark.parametrize("targets", [1, 20])
def test_a_mean_of_one_number_is_what_it_is_in_gpytorch(targets) -> None:
    def message() -> str:
        asked = Asked(of_kernel=(), of_y=())
        covariance = asked.marginal().lazy_covariance_matrix
        marginal = MultivariateNormal(torch.zeros(1, dtype=torch.float64), covariance)
        try:
            return str(float(marginal.log_prob(torch.ones(targets, dtype=torch.float64)).detach()))[:12]
        except RuntimeError as error:
            return str(error)

    expected = message()
    with exact_path():
        assert message() == expected


def test_a_shape_parameter_that_underflows_is_what_it_is_in_gpytorch() -> None:
    def value() -> Tensor:
        asked = Asked("rational_quadratic")
        asked.model["kernel"].base_kernel.raw_alpha.data[1] = -800.0
        return asked.values().detach()

    expected = value()
    assert expected.isfinite().all()
    with exact_path():
        torch.testing.assert_close(value(), expected)


IN_THREADS = """
import threading, torch
from gp_rangeformer import settings
from tests.plugin.market import build
torch.set_num_threads(1)
for batch in BATCHES:
    problem = build("ard", n=400, batch=batch)
    with settings.rangeformer():
        loss = problem.loss()
    leaves = list(problem.model.parameters())
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    asked, wrong = [], []
    def ask():
        for _ in range(40):
            found = torch.autograd.grad(loss, leaves, retain_graph=True)
            wrong.extend(1 for a, b in zip(found, expected) if not torch.equal(a, b))
            asked.append(1)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(asked) == 80, (batch, len(asked))
    assert not wrong, (batch, len(wrong))
"""


def test_two_threads_may_ask_one_graph_for_gradients() -> None:
    script = IN_THREADS.replace("BATCHES", repr([(), (3,)]))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, (run.returncode, run.stderr)


@batches
def test_a_kernel_called_in_inference_mode_gives_gpytorchs_value(batch) -> None:
    def value() -> Tensor:
        asked = Asked(of_kernel=batch, of_y=batch)
        with torch.inference_mode():
            marginal = asked.marginal()
        return marginal.log_prob(asked.y).detach()

    expected = value()
    with exact_path():
        torch.testing.assert_close(value(), expected, rtol=1e-9, atol=0)
