"""Batches in every mode of autograd and torch: matrices read first, masks, transforms, checkpoints, kept losses."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.allocation import free_cores
from gp_rangeformer.plugin import likelihood
from gp_rangeformer.system.reason import Reason
from tests.plugin.batches import (
    Answer,
    Asked,
    Shape,
    answered,
    assert_close,
    assert_gpytorchs,
    derived,
    first_derivatives,
    rounding,
)
from tests.plugin.market import build, exact_path, flat_gradient


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batch"])
def test_a_matrix_that_was_read_first_is_the_one_that_is_differentiated(batch, when) -> None:
    def answer(asked: Asked) -> Answer:
        prior = asked.prior()
        if when == "before":
            kernel = prior.covariance_matrix
            marginal = asked.likelihood(prior)
        else:
            marginal = asked.likelihood(prior)
            kernel = prior.lazy_covariance_matrix.evaluate_kernel().to_dense()
        kernel.retain_grad()
        loss = marginal.log_prob(asked.y).sum()
        loss.backward()
        symmetric = 0.5 * (kernel.grad + kernel.grad.mT)
        return {"kernel": symmetric, **{name: leaf.grad for name, leaf in asked.leaves.items()}}  # type: ignore[dict-item]

    assert_gpytorchs(lambda: Asked(of_kernel=batch, of_y=batch, n=25), answer)


def test_a_hook_on_a_matrix_that_was_read_first_is_called() -> None:
    def answer(asked: Asked) -> Answer:
        prior = asked.prior()
        prior.covariance_matrix.register_hook(lambda gradient: 3 * gradient)
        return derived(asked.likelihood(prior).log_prob(asked.y).sum(), asked)

    assert_gpytorchs(Asked, answer)


def test_the_whole_covariance_may_be_read_first() -> None:
    def answer(asked: Asked) -> Answer:
        marginal = asked.marginal()
        covariance = marginal.covariance_matrix
        return {
            "covariance": covariance.detach(),
            **derived(marginal.log_prob(asked.y).sum() + covariance.sum(), asked),
        }

    assert_gpytorchs(Asked, answer, factor=20.0)


def test_one_distribution_is_asked_twice() -> None:
    def answer(asked: Asked) -> Answer:
        marginal = asked.marginal()
        return derived(marginal.log_prob(asked.y).sum() - 2 * marginal.log_prob(-asked.y).sum(), asked)

    assert_gpytorchs(Asked, answer)


def test_the_flag_may_be_left_before_the_backward_pass_and_entered_for_it() -> None:
    expected = first_derivatives(Asked())
    asked = Asked()
    weights = torch.linspace(-1, 2, 3, dtype=torch.float64)
    with answered():
        inside = asked.values()
        later = asked.values()
    with gpytorch.settings.fast_computations(log_prob=False), settings.fused_kernels("tensors"):
        found = {"value": inside.detach(), **derived((weights * inside).sum(), asked)}
    assert_close(found, expected, rounding(asked))
    outside = asked.values()
    with exact_path():
        for values in (later, outside):
            again = {"value": values.detach(), **derived((weights * values).sum(), asked)}
            assert_close(again, expected, rounding(asked))


def test_a_value_without_a_graph_is_the_same_and_spoils_nothing() -> None:
    expected = first_derivatives(Asked())
    with answered():
        asked = Asked()
        marginal = asked.marginal()
        with torch.no_grad():
            value = marginal.log_prob(asked.y)
        assert not value.requires_grad
        with torch.inference_mode():
            assert torch.equal(asked.values(), value)
        weights = torch.linspace(-1, 2, 3, dtype=torch.float64)
        found = {"value": value, **derived((weights * marginal.log_prob(asked.y)).sum(), asked)}
    assert_close(found, expected, rounding(asked))


def market_loss(batch: Shape = (3,), **options: Any) -> Any:
    return build("ard", n=20, batch=batch, **options)


def loss_and_gradient(problem: Any) -> Answer:
    loss, gradient = problem.loss_and_gradient()
    return {"loss": torch.tensor(loss, dtype=torch.float64), "gradient": gradient}


def test_masked_targets_are_gpytorchs() -> None:
    def answer() -> Answer:
        problem = market_loss()
        problem.y = problem.y.clone()
        problem.y[1, 4] = torch.nan
        problem.model.set_train_data(problem.x, problem.y)
        return loss_and_gradient(problem)

    with gpytorch.settings.observation_nan_policy("mask"):
        expected = answer()
        with settings.rangeformer(), settings.exact_size(1), collect_reports() as reports:
            found = answer()
    assert {report.reason for report in reports} == {Reason.NAN_POLICY}
    assert_close(found, expected, 0.0)
    assert expected["loss"].isfinite()


@pytest.mark.filterwarnings("ignore:The checkpointing feature is deprecated")
def test_checkpointed_kernels_are_gpytorchs() -> None:
    with gpytorch.beta_features.checkpoint_kernel(10), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = loss_and_gradient(market_loss())
        with settings.rangeformer(), settings.exact_size(1), collect_reports() as reports:
            found = loss_and_gradient(market_loss())
    assert {report.reason for report in reports} == {Reason.CHECKPOINTED_KERNEL}
    assert_close(found, expected, 0.0)


NAME = "problem.covar_module.base_kernel.raw_lengthscale"


class Loss(torch.nn.Module):
    def __init__(self, problem: Any) -> None:
        super().__init__()
        self.problem, self.asked = problem.model, problem

    def forward(self) -> Tensor:
        return self.asked.loss()


def of_lengthscales() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    loss = Loss(market_loss())
    start = dict(loss.named_parameters())[NAME].detach().clone()
    return lambda raw: functional_call(loss, {NAME: raw}, ()), start


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: grad(f)(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
    "forward_over_reverse": lambda f, x: jacfwd(grad(f))(x),
    "functional_hessian": lambda f, x: torch.autograd.functional.hessian(f, x),
    "functional_hessian_vectorized": lambda f, x: torch.autograd.functional.hessian(f, x, vectorize=True),
    "functional_jacobian_vectorized": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning", "ignore:Converting a tensor:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_a_batch_s_loss_give_what_they_give_without_the_flag(name) -> None:
    expected = TRANSFORMS[name](*of_lengthscales())
    with exact_path():
        found = TRANSFORMS[name](*of_lengthscales())
    assert_close({name: found}, {name: expected}, 20 * rounding(Asked()))
    assert float(expected.norm()) > 0


def test_a_compiled_loss_is_the_same_to_the_last_bit() -> None:
    with answered():
        expected = loss_and_gradient(market_loss())
        problem = market_loss()
        run = torch.compile(problem.loss, backend="eager")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                problem.model.zero_grad()
                loss = run()
                loss.backward()
    torch.compiler.reset()
    assert torch.equal(loss.detach(), expected["loss"])
    assert torch.equal(flat_gradient(problem.model), expected["gradient"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("whole", [True, False], ids=["forward_and_backward", "forward"])
def test_autocast_changes_no_bit(whole, dtype) -> None:
    def step(cast: bool) -> Answer:
        asked = Asked(dtype=dtype)
        with answered(), contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=cast))
            values = asked.values()
            if not whole:
                stack.close()
            return {"value": values.detach(), **derived(values.sum(), asked)}

    expected, found = step(False), step(True)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


SAVING: dict[str, Callable[[], Any]] = {
    "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor),
    "on_cpu": torch.autograd.graph.save_on_cpu,
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", SAVING)
def test_whoever_keeps_what_autograd_saves_gets_the_same_gradients(name) -> None:
    def answer(asked: Asked) -> Answer:
        with SAVING[name]():
            loss = asked.values().sum()
        return derived(loss, asked)

    assert_gpytorchs(Asked, answer)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_around_the_likelihood_gives_the_same_gradients(use_reentrant) -> None:
    def answer(asked: Asked) -> Answer:
        def values(x: Tensor) -> Tensor:
            kernel: Any = asked.model["kernel"](x)
            prior = MultivariateNormal(asked.model["mean"](x), kernel)
            return asked.likelihood(prior).log_prob(asked.y)

        found: Any = checkpoint(values, asked.x, use_reentrant=use_reentrant)
        found.sum().backward()
        return {"value": found.detach(), **{name: leaf.grad for name, leaf in asked.leaves.items()}}  # type: ignore[dict-item]

    assert_gpytorchs(Asked, answer)


def test_gradients_are_asked_for_again_as_long_as_the_graph_is_retained() -> None:
    with answered():
        asked = Asked()
        loss, leaves = asked.values().sum(), list(asked.leaves.values())
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        second = torch.autograd.grad(loss, leaves)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, leaves)
    assert all(torch.equal(own, other) for own, other in zip(first, second, strict=True))


@pytest.mark.parametrize("count", [1, 2], ids=["one_thread", "two_threads"])
def test_the_same_step_gives_the_same_bits(count, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_cores, "_THIS_THREAD", None)  # beside other work half of the threads add in another order
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with answered():
            steps = [first_derivatives(Asked(n=90, of_x=(3,))) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for step in steps[1:]:
        for name, value in steps[0].items():
            assert torch.equal(step[name], value), name


def test_a_loss_kept_after_its_backward_pass_holds_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[StorageWeakRef] = []
    original = likelihood.evaluate_batch

    def spy(kernel: Tensor, *arguments: Any) -> Any:
        found = original(kernel, *arguments)
        assert found is not None
        assert found.weight.factor is not None
        seen.extend(StorageWeakRef(t.untyped_storage()) for t in (kernel, found.weight.factor))
        return found

    monkeypatch.setattr(likelihood, "evaluate_batch", spy)
    with answered():
        asked = Asked(n=200)
        loss = asked.values().sum()
        assert [reference.expired() for reference in seen] == [True, False]
        loss.backward()
    assert all(reference.expired() for reference in seen)
    assert loss.grad_fn is not None
