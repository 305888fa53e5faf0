"""K kept, retained, checkpointed, evaluated in other modes or differentiated itself: gradients flow as GPyTorch's."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gp_rangeformer import settings
from gp_rangeformer.kernels.unformed_weight import UnformedWeight
from tests.plugin.market import Problem, added_diagonal, build, exact_path, rangeformer_path, relative
from tests.plugin.matrix_in_hand import CHANGES, N, gradients, handled, kept, loss_and_gradient, to_dense


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
