"""K taken out as a tensor and changed, hooked, kept or differentiated by itself: value and gradient follow."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import gpytorch
import numpy as np
import pytest
import torch
from linear_operator import to_linear_operator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.kernels.unformed_weight import UnformedWeight
from tests.plugin.market import (
    GP,
    Problem,
    added_diagonal,
    build,
    exact_path,
    plain_probes,
    probe_surrogate,
    rangeformer_path,
    relative,
)

N = 100
Change = Callable[[Tensor, Tensor], Tensor]


class Handled(GP):
    """Hands K, and a parameter of its own, to ``change`` before the distribution gets it."""

    extra: torch.nn.Parameter
    change: Change
    evaluated: Callable[[Any, Tensor], Tensor]

    def forward(self, x: Tensor) -> Any:
        kernel = self.change(self.evaluated(self.covar_module, x), self.extra)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), to_linear_operator(kernel))


def to_dense(kernel: Any, x: Tensor) -> Tensor:
    return kernel(x).to_dense()


def handled(change: Change, dtype: torch.dtype = torch.float64, evaluated: Any = to_dense) -> Problem:
    problem = build(n=N, dtype=dtype)
    own = problem.model
    model: Any = Handled(problem.x, problem.y, own.likelihood, own.mean_module, own.covar_module).to(dtype)
    model.extra = torch.nn.Parameter(torch.tensor(1.3, dtype=dtype))
    model.change, model.evaluated = change, evaluated
    return Problem(model, problem.x, problem.y, problem.test_x)


def gradients(problem: Problem) -> Tensor:
    """Of every parameter, zero where none arrived."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in problem.model.parameters()]
    return torch.cat([part.reshape(-1).double() for part in parts])


def loss_and_gradient(problem: Problem) -> tuple[Tensor, Tensor]:
    problem.model.zero_grad()
    loss = problem.loss()
    loss.backward()
    return loss.detach(), gradients(problem)


def between_two_groups(kernel: Tensor) -> Tensor:
    """Of points; K without these entries is positive definite still."""
    first = torch.arange(len(kernel)) < 40
    return first[:, None] != first


def in_place(change: Callable[[Tensor, Tensor], Any]) -> Change:
    def changed(kernel: Tensor, extra: Tensor) -> Tensor:
        change(kernel, extra)
        return kernel

    return changed


def through_the_operator(kernel: Tensor, extra: Tensor) -> Tensor:
    operator: Any = to_linear_operator(kernel)
    operator.tensor.mul_(extra)
    return operator.to_dense()


def bent(kernel: Tensor, extra: Tensor) -> Tensor:
    kernel *= extra
    kernel.register_hook(lambda gradient: 0.5 * gradient)
    return kernel


CHANGES: dict[str, Change] = {
    "untouched": lambda kernel, extra: kernel,
    "times_equals": in_place(lambda kernel, extra: kernel.__imul__(extra.exp())),
    "mul_": in_place(lambda kernel, extra: kernel.mul_(extra)),
    "mul_without_gradient": in_place(lambda kernel, extra: kernel.mul_(2.0)),
    "diagonal_add_": in_place(lambda kernel, extra: kernel.diagonal().add_(extra)),
    "entries_set": in_place(lambda kernel, extra: kernel.__setitem__(between_two_groups(kernel), 0.0)),
    "row_and_column_scaled": in_place(lambda kernel, extra: kernel[3].mul_(extra) is kernel[:, 3].mul_(extra)),
    "operators_tensor": through_the_operator,
    "data": in_place(lambda kernel, extra: kernel.data.mul_(2.0)),
    "numpy": in_place(lambda kernel, extra: np.multiply(kernel.detach().numpy(), 2, out=kernel.detach().numpy())),
    "detached_in_place": in_place(lambda kernel, extra: kernel.detach().mul_(2.0)),
    "times": lambda kernel, extra: extra * kernel,
    "plus_identity": lambda kernel, extra: kernel + extra * torch.eye(len(kernel), dtype=kernel.dtype),
    "power": lambda kernel, extra: kernel**2,
    "clone": lambda kernel, extra: kernel.clone(),
    "clone_then_in_place": lambda kernel, extra: kernel.clone().mul_(extra),
    "view": lambda kernel, extra: kernel.view(-1).view(kernel.shape),
    "view_in_place": in_place(lambda kernel, extra: kernel.view(-1).mul_(extra)),
    "transposed": lambda kernel, extra: kernel.mT,
    "to_and_fro": lambda kernel, extra: kernel.to(torch.float64).to(kernel.dtype),
    "detached": lambda kernel, extra: extra * kernel.detach(),
    "used_twice": lambda kernel, extra: kernel + 0.1 * extra * kernel @ kernel,
    "added_to_itself": lambda kernel, extra: kernel + kernel,
    "changed_and_hooked": bent,
    "retain_grad": in_place(lambda kernel, extra: kernel.retain_grad()),
}


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


def kept(problem: Problem) -> list[Tensor]:
    """Filled by the next loss with its kernel matrix."""
    seen: list[Tensor] = []
    problem.model.change = in_place(lambda kernel, extra: seen.append(kernel))
    return seen


def to_the_matrix(problem: Problem) -> Tensor:
    seen = kept(problem)
    return torch.autograd.grad(problem.loss(), seen[0])[0]


def to_a_leaf(problem: Problem) -> Tensor:
    seen: list[Tensor] = []

    def change(kernel: Tensor, extra: Tensor) -> Tensor:
        seen.append(kernel.detach().requires_grad_())
        return seen[0]

    problem.model.change = change
    loss = problem.loss()
    loss.backward(retain_graph=True)
    loss.backward()
    return gradient_of(seen[0])


def gradient_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def to_the_matrix_and_the_parameters(problem: Problem) -> Tensor:
    seen = kept(problem)
    loss = problem.loss()
    wanted = [seen[0], *(p for name, p in problem.model.named_parameters() if name != "extra")]
    return torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(loss, wanted)])


def retained(problem: Problem) -> Tensor:
    """Twice: the second is added to the first."""
    seen = kept(problem)
    loss = problem.loss()
    seen[0].retain_grad()
    loss.backward(retain_graph=True)
    loss.backward()
    return torch.cat([gradient_of(seen[0]).reshape(-1), gradients(problem)])


def handed_on(problem: Problem) -> Tensor:
    """dL/dK, doubled in place, is pushed through the kernel by hand."""
    seen = kept(problem)
    (gradient,) = torch.autograd.grad(problem.loss(), seen[0], retain_graph=True)
    gradient *= 2
    seen[0].backward(gradient)
    return gradients(problem)


def matrix_squared_norm(problem: Problem) -> Tensor:
    """The gradient of |dL/dK|^2. K's second derivatives vanish from the parameters' view only."""
    seen = kept(problem)
    (gradient,) = torch.autograd.grad(problem.loss(), seen[0], create_graph=True)
    gradient.square().sum().backward()
    return gradients(problem)


def two_systems_of_one_matrix(problem: Problem) -> Tensor:
    seen = kept(problem)
    loss = problem.loss()
    other = added_diagonal(seen[0], 0.3)
    loss = loss + other.inv_quad_logdet(problem.y[:, None], logdet=True)[0] + other.solve(problem.y) @ problem.y
    loss.backward()
    return gradients(problem)


def twice(problem: Problem) -> Tensor:
    for _ in range(2):
        problem.loss().backward()
    return gradients(problem)


def checkpointed(reentrant: bool) -> Callable[[Problem], Tensor]:
    """The whole step. Without re-entrance PyTorch compares what the two evaluations save, which memory may change."""

    def flow(problem: Problem) -> Tensor:
        with settings.deterministic(not reentrant):
            for _ in range(3):  # later steps have a memory
                problem.model.zero_grad()
                one = torch.ones((), dtype=torch.float64, requires_grad=True)
                loss: Any = checkpoint(lambda one: one * problem.loss(), one, use_reentrant=reentrant)
                loss.backward()
        return gradients(problem)

    return flow


def anomaly(problem: Problem) -> Tensor:
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        problem.loss().backward()
    return gradients(problem)


def saved_elsewhere(problem: Problem) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.clone(), lambda saved: saved):
        loss = problem.loss()
    loss.backward()
    return gradients(problem)


FLOWS: dict[str, Callable[[Problem], Tensor]] = {
    "to_the_matrix": to_the_matrix,
    "to_a_leaf": to_a_leaf,
    "to_the_matrix_and_the_parameters": to_the_matrix_and_the_parameters,
    "retained": retained,
    "handed_on": handed_on,
    "matrix_squared_norm": matrix_squared_norm,
    "two_systems_of_one_matrix": two_systems_of_one_matrix,
    "twice": twice,
    "checkpointed": checkpointed(False),
    "checkpointed_reentrant": checkpointed(True),
    "anomaly": anomaly,
    "saved_elsewhere": saved_elsewhere,
}


@contextlib.contextmanager
def many_probes() -> Any:
    """600 probes of a well preconditioned system: the gradient is nearly exact."""
    with rangeformer_path(1e-6, rank=100, probes=600):
        yield


@pytest.mark.parametrize(("path", "allowed"), [(exact_path, 1e-9), (many_probes, 0.2)], ids=["exact", "rangeformer"])
@pytest.mark.parametrize("flow", sorted(FLOWS))
def test_gradients_flow_as_gpytorchs(flow, path, allowed) -> None:
    expected = FLOWS[flow](handled(CHANGES["untouched"]))
    with path():
        found = FLOWS[flow](handled(CHANGES["untouched"]))
    assert float(expected.norm()) > 0
    assert relative(found, expected) < allowed


def under(mode: Any) -> Callable[[Any, Tensor], Tensor]:
    def evaluated(kernel: Any, x: Tensor) -> Tensor:
        with mode():
            matrix = kernel(x).to_dense()
        return matrix.clone()

    return evaluated


def by_checkpoint(reentrant: bool) -> Callable[[Any, Tensor], Tensor]:
    def evaluated(kernel: Any, x: Tensor) -> Tensor:
        inputs = x.clone().requires_grad_()
        matrix: Any = checkpoint(lambda inputs: to_dense(kernel, inputs), inputs, use_reentrant=reentrant)
        return matrix

    return evaluated


EVALUATIONS = {
    "no_grad": under(torch.no_grad),
    "inference_mode": under(torch.inference_mode),
    "checkpointed": by_checkpoint(False),
    "checkpointed_reentrant": by_checkpoint(True),
}


@pytest.mark.parametrize("name", sorted(EVALUATIONS))
def test_a_matrix_evaluated_in_another_mode_has_that_modes_gradient(name) -> None:
    def run() -> Tensor:
        problem = handled(lambda kernel, extra: extra * kernel, evaluated=EVALUATIONS[name])
        return torch.cat([part.reshape(-1).double() for part in loss_and_gradient(problem)])

    expected = run()
    with exact_path():
        assert relative(run(), expected) < 1e-9
    with many_probes():
        assert relative(run()[1:], expected[1:]) < 0.05


@pytest.mark.parametrize("path", [exact_path, rangeformer_path])
def test_under_inference_mode_the_value_is_the_same(path) -> None:
    expected = float(handled(CHANGES["times_equals"]).loss().detach())
    with path(), torch.inference_mode():
        found = handled(CHANGES["times_equals"]).loss()
    assert found.is_inference()
    assert abs(float(found) - expected) < 0.05


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


@pytest.mark.parametrize("kernel", ["rbf", "matern12", "matern32", "matern52", "rational_quadratic", "periodic"])
def test_second_derivatives_are_those_of_differences(kernel) -> None:
    """GPyTorch's own are not: its covariance functions' backward passes cannot be differentiated."""

    def squared_norm(problem: Problem, create_graph: bool = False) -> Tensor:
        found = torch.autograd.grad(problem.loss(), list(problem.model.parameters()), create_graph=create_graph)
        return torch.stack([gradient.square().sum() for gradient in found]).sum()

    problem = build(kernel, n=N)
    expected = []
    for parameter in problem.model.parameters():
        ends = []
        for step in (1e-5, -1e-5):
            parameter.data += step
            ends.append(float(squared_norm(problem)))
            parameter.data -= step
        expected.append((ends[0] - ends[1]) / 2e-5)
    for path in (exact_path, rangeformer_path):
        problem.model.zero_grad()
        with path():
            squared_norm(problem, create_graph=True).backward()
        assert relative(gradients(problem), torch.tensor(expected)) < 1e-6


def saved_and_loaded(gradient: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save({"gradient": gradient}, file)
    file.seek(0)
    return torch.load(file)["gradient"]


TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda gradient: pickle.loads(pickle.dumps(gradient)),
    "save": saved_and_loaded,
    "numpy": lambda gradient: torch.from_numpy(gradient.numpy()),
    "asarray": lambda gradient: torch.from_numpy(np.asarray(gradient)),
    "tolist": lambda gradient: torch.tensor(gradient.tolist(), dtype=torch.float64),
    "clone": lambda gradient: gradient.clone(),
    "detach": lambda gradient: gradient.detach(),
    "data": lambda gradient: gradient.data,
    "dlpack": torch.from_dlpack,
    "as_subclass": lambda gradient: 1 * gradient.as_subclass(torch.Tensor),
    "rows": lambda gradient: torch.stack(list(gradient)),
    "copied_into": lambda gradient: torch.empty(N, N, dtype=torch.float64).copy_(gradient),
    "vmap": torch.vmap(lambda row: 1 * row),
    "product": lambda gradient: torch.eye(N, dtype=torch.float64) @ gradient,
    "nested": lambda gradient: torch.cat([gradient[:5], gradient[5:]]),
}


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_a_gradient_in_factors_is_a_tensor_to_everybody(name) -> None:
    problem = handled(CHANGES["untouched"])
    with rangeformer_path():
        gradient = to_the_matrix(problem)
    assert type(gradient) is UnformedWeight
    assert gradient.shape == (N, N)
    assert gradient.dtype == torch.float64
    found = TAKEN[name](gradient)
    assert type(found) is not UnformedWeight
    torch.testing.assert_close(found, gradient.factors.symmetric(), rtol=0, atol=0)


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
