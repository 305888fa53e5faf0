"""K taken out as a tensor and changed or hooked, before or after its loss: value and gradient follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.kernels.contract import ThinWeight
from tests.plugin.market import exact_path, plain_probes, probe_surrogate, rangeformer_path, relative
from tests.plugin.matrix_in_hand import CHANGES, Change, N, gradients, handled, in_place, kept, loss_and_gradient


def hooked(hook: Callable[[Tensor], Any]) -> Change:
    return in_place(lambda kernel, extra: kernel.register_hook(hook))


def nothing_back(change: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        change(gradient)

    return hook


def at_the_node(hook: Callable[[Any], Any]) -> Change:
    return in_place(lambda kernel, extra: kernel.grad_fn.register_prehook(hook))  # type: ignore[union-attr]


def one_after_another(kernel: Tensor, extra: Tensor) -> Tensor:
    kernel.register_hook(nothing_back(lambda gradient: gradient.mul_(0.5)))
    kernel.register_hook(lambda gradient: 3 * gradient)
    kernel.register_hook(nothing_back(lambda gradient: gradient.diagonal().zero_()))
    return kernel


HOOKS: dict[str, Change] = {
    "halved": hooked(lambda gradient: gradient / 2),
    "looked_at": hooked(nothing_back(lambda gradient: gradient.norm())),
    "halved_in_place": hooked(nothing_back(lambda gradient: gradient.mul_(0.5))),
    "returned_from_in_place": hooked(lambda gradient: gradient.mul_(0.5)),
    "out": hooked(nothing_back(lambda gradient: torch.mul(gradient, 0.5, out=gradient))),
    "data": hooked(nothing_back(lambda gradient: gradient.data.mul_(0.5))),
    "detached": hooked(nothing_back(lambda gradient: gradient.detach().mul_(0.5))),
    "diagonal_view": hooked(nothing_back(lambda gradient: gradient.diagonal().zero_())),
    "entries": hooked(nothing_back(lambda gradient: gradient.__setitem__((slice(5), slice(5)), 0.0))),
    "zeroed": hooked(nothing_back(lambda gradient: gradient.zero_())),
    "node": at_the_node(lambda gradients: (0.5 * gradients[0],)),
    "node_in_place": at_the_node(lambda gradients: nothing_back(lambda gradient: gradient.mul_(0.5))(gradients[0])),
    "one_after_another": one_after_another,
}

HANDLED = {**CHANGES, **{f"hook_{name}": hook for name, hook in HOOKS.items()}}

PRECISION = {torch.float32: (1e-4, 3e-3), torch.float64: (1e-11, 1e-9)}

# float32 takes another path through the factorisation, not through autograd: a few of each kind do.
IN_FLOAT32 = ("untouched", "times_equals", "data", "used_twice", "hook_halved_in_place", "hook_one_after_another")

CASES = [(name, torch.float64) for name in sorted(HANDLED)] + [(name, torch.float32) for name in IN_FLOAT32]

cases = pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)


@cases
def test_whatever_is_done_to_the_matrix_the_exact_path_agrees_with_gpytorch(name, dtype) -> None:
    change, (value_tolerance, gradient_tolerance) = HANDLED[name], PRECISION[dtype]
    value, gradient = loss_and_gradient(handled(change))  # float64, whatever dtype the flag meets
    with exact_path() as reports:
        found, found_gradient = loss_and_gradient(handled(change, dtype))
    assert {report.solver for report in reports} == {"exact"}
    assert abs(float(found - value)) < value_tolerance * max(1, abs(float(value)))
    assert relative(found_gradient, gradient) < gradient_tolerance


@cases
def test_whatever_is_done_to_the_matrix_the_probes_gradient_follows_it(name, dtype) -> None:
    """Hooks are linear and symmetric here: of the reference's weight, which is not symmetric, they make the same."""
    change, (tolerance, allowed) = HANDLED[name], {torch.float32: (1e-3, 0.02), torch.float64: (1e-7, 1e-5)}[dtype]
    expected = handled(change)
    probe_surrogate(expected).backward()
    problem = handled(change, dtype)
    with rangeformer_path(tolerance), plain_probes():
        loss = problem.loss()
        loss.backward()
    value, _ = loss_and_gradient(handled(change))
    assert relative(gradients(problem), gradients(expected)) < allowed
    assert abs(float(loss.detach() - value)) < 0.05  # the log determinant is an estimate


def test_nobody_forms_the_weight_of_a_matrix_that_nobody_touched() -> None:
    with rangeformer_path(), mock.patch.object(ThinWeight, "symmetric", side_effect=AssertionError("formed")):
        handled(CHANGES["untouched"]).loss().backward()
        with pytest.raises(AssertionError, match="formed"):
            handled(HOOKS["looked_at"]).loss().backward()


@pytest.mark.parametrize("path", [exact_path, rangeformer_path])
def test_a_matrix_changed_after_its_loss_is_refused(path) -> None:
    problem = handled(CHANGES["untouched"])
    seen = kept(problem)
    with path():
        loss = problem.loss()
        with torch.no_grad():
            seen[0].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("name", ["times_equals", "data", "times"])
def test_a_changed_matrix_of_default_settings_keeps_its_gradient(name) -> None:
    """From settings.min_size on, float32, adaptive rank, the learned log determinant and all."""

    def run() -> tuple[Tensor, Tensor]:
        problem = handled(CHANGES[name], torch.float32)
        problem.model.likelihood.noise = 0.3
        return loss_and_gradient(problem)

    value, gradient = run()
    with settings.rangeformer(), settings.min_size(100), collect_reports() as reports:
        found, found_gradient = run()
    assert reports[0].n == N
    assert abs(float(found - value)) < 0.02
    assert relative(found_gradient, gradient) < 0.1
