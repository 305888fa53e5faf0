"""What a model's forward makes of a kernel matrix that is not held: numbers and gradients as of one that is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import IndexKernel, MaternKernel, ScaleKernel
from linear_operator.operators import KroneckerProductLinearOperator, RootLinearOperator
from torch import Tensor

from gp_rangeformer import settings
from tests.plugin.market import exact_path

N, TASKS = 130, 2
Join = Callable[[Any, Tensor, Tensor], Any]


class Joined(gpytorch.models.ExactGP):
    """Of a kernel of the points and one of tasks, ``join``ed in forward."""

    def __init__(self, join: Join, kronecker: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(N, 2, dtype=torch.float64, generator=generator)
        tasks = torch.randint(0, TASKS, (N, 1), generator=generator)
        shape = (N, TASKS) if kronecker else (N,)
        y = torch.sin(5 * x.sum(-1)).reshape(N, *[1] * kronecker) + 0.1 * torch.randn(
            shape, dtype=torch.float64, generator=generator
        )
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        if kronecker:
            likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(TASKS, has_task_noise=False, rank=0)
        super().__init__((x, tasks), y, likelihood)
        self.join, self.kronecker = join, kronecker
        self.points = ScaleKernel(MaternKernel(1.5, ard_num_dims=2))
        torch.manual_seed(1)
        self.tasks = IndexKernel(num_tasks=TASKS, rank=1)
        self.double()

    def forward(self, x: Tensor, tasks: Tensor) -> Any:
        covariance = self.join(self, x, tasks)
        if self.kronecker:
            return MultitaskMultivariateNormal(x.new_zeros(N, TASKS), covariance)
        return MultivariateNormal(x.new_zeros(N), covariance)


def kronecker(model: Any, x: Tensor, tasks: Tensor) -> Any:
    return KroneckerProductLinearOperator(model.points(x), model.tasks.covar_matrix)


def kronecker_with_given_tasks(model: Any, x: Tensor, tasks: Tensor) -> Any:
    return KroneckerProductLinearOperator(model.points(x), torch.eye(TASKS, dtype=torch.float64) + 0.5)


def times_tasks(model: Any, x: Tensor, tasks: Tensor) -> Any:
    return model.points(x).mul(model.tasks(tasks))


def tasks_times(model: Any, x: Tensor, tasks: Tensor) -> Any:
    return model.tasks(tasks).mul(model.points(x))


def times_itself(model: Any, x: Tensor, tasks: Tensor) -> Any:
    return model.points(x).mul(model.points(x))


def root_times(model: Any, x: Tensor, tasks: Tensor) -> Any:
    return RootLinearOperator(1 + x).mul(model.points(x))


JOINS = [kronecker, kronecker_with_given_tasks, times_tasks, tasks_times, times_itself, root_times]


def value_and_gradients(join: Any, flag: bool) -> tuple[Tensor, list[Tensor]]:
    model: Any = Joined(join, "kronecker" in join.__name__)
    mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    with (
        settings.rangeformer(flag),
        settings.kernel_storage("tiles"),
        gpytorch.settings.max_cholesky_size(10_000),
    ):
        loss = mll(model(*model.train_inputs), model.train_targets)
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return loss.detach(), list(found)


@pytest.mark.parametrize("join", JOINS, ids=[join.__name__ for join in JOINS])
def test_values_and_gradients_are_those_of_the_host(join: Any) -> None:
    value, gradients = value_and_gradients(join, flag=True)
    expected, wanted = value_and_gradients(join, flag=False)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradients, wanted, rtol=1e-7, atol=1e-9)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in wanted)


@pytest.mark.parametrize(
    "multiply", [lambda kernel, columns: kernel._matmul(columns), lambda kernel, columns: kernel @ columns]
)
def test_a_product_has_second_derivatives(multiply: Callable[[Any, Tensor], Tensor]) -> None:
    """With K's arguments and with what it is multiplied by."""
    model: Any = Joined(times_itself, kronecker=False)
    parameters = list(model.points.parameters())

    def hessian_rows(storage: str) -> list[Tensor]:
        columns = torch.linspace(1, 2, 2 * N, dtype=torch.float64).reshape(N, 2).requires_grad_()
        with settings.rangeformer(), settings.kernel_storage(storage):
            kernel = model.points(model.train_inputs[0]).evaluate_kernel()
            product = multiply(kernel, columns).square().sum()
            first = torch.autograd.grad(product, [columns, *parameters], create_graph=True)
            total = torch.stack([gradient.sum() for gradient in first]).sum()
            return list(torch.autograd.grad(total, [columns, *parameters]))

    torch.testing.assert_close(hessian_rows("tiles"), hessian_rows("dense"), rtol=1e-7, atol=1e-7)


def batch_of(kernel: Any) -> Tensor:
    return kernel.unsqueeze(0).expand(3, N, N).to_dense()


def repeated(kernel: Any) -> Tensor:
    return kernel.repeat(3, 1, 1).to_dense()


def single(kernel: Any) -> Tensor:
    return kernel.float().to_dense()


def as_single(kernel: Any) -> Tensor:
    return kernel.to(torch.float32).to_dense()


def log_probabilities(kernel: Any) -> Tensor:
    normal = MultivariateNormal(torch.zeros(N, dtype=torch.float64), kernel.add_jitter(0.1)).expand(torch.Size([3]))
    return normal.log_prob(torch.linspace(-1, 1, 3 * N, dtype=torch.float64).reshape(3, N))


def plus_a_number(kernel: Any) -> Tensor:
    return (torch.tensor(0.3, dtype=torch.float64) + kernel).to_dense()


def minus_a_row(kernel: Any) -> Tensor:
    return (kernel - torch.linspace(0, 1, N, dtype=torch.float64)).to_dense()


def permuted(kernel: Any) -> Tensor:
    return kernel.permute(0, 1).to_dense()


FLOWS = [batch_of, repeated, single, as_single, log_probabilities, plus_a_number, minus_a_row, permuted]


@pytest.mark.parametrize("flow", FLOWS)
def test_batches_sums_and_other_dtypes_are_those_of_the_dense_matrix(flow: Callable[[Any], Tensor]) -> None:
    model: Any = Joined(times_itself, kronecker=False)
    parameters = list(model.points.parameters())
    found = []
    for storage in ("tiles", "dense"):
        with settings.rangeformer(), settings.kernel_storage(storage):
            value = flow(model.points(model.train_inputs[0]).evaluate_kernel())
            found.append([value, *torch.autograd.grad(value.square().sum(), parameters)])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_many_gradients_of_a_product_at_once_are_those_of_the_dense_matrix() -> None:
    model: Any = Joined(times_itself, kronecker=False)
    gradients = torch.linspace(-1, 1, 4 * N * 2, dtype=torch.float64).reshape(4, N, 2)
    found = []
    for storage in ("tiles", "dense"):
        columns = torch.linspace(1, 2, N * 2, dtype=torch.float64).reshape(N, 2).requires_grad_()
        with settings.rangeformer(), settings.kernel_storage(storage):
            product = model.points(model.train_inputs[0]).evaluate_kernel() @ columns
            wanted = [columns, *model.points.parameters()]
            found.append(torch.autograd.grad(product, wanted, gradients, is_grads_batched=True))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("way", ["detach", "detach_"])
def test_a_detached_matrix_has_no_graph_and_can_be_copied(way: str) -> None:
    model: Any = Joined(times_itself, kronecker=False)
    with settings.rangeformer(), settings.kernel_storage("tiles"):
        kernel = model.points(model.train_inputs[0]).evaluate_kernel()
        expected = kernel.to_dense().detach()
        found = getattr(kernel, way)()
        assert kernel.requires_grad == (way == "detach")
        assert (found is kernel) == (way == "detach_")
        assert not found.requires_grad
        assert torch.equal(copy.deepcopy(found).to_dense(), expected)


def test_a_matrix_whose_likelihood_was_differentiated_can_be_pickled() -> None:
    model: Any = Joined(times_itself, kronecker=False)
    with exact_path(), settings.kernel_storage("tiles"):
        kernel = model.points(model.train_inputs[0]).evaluate_kernel()
        expected = kernel.add_jitter(0.1).logdet()
        expected.backward()
        again = pickle.loads(pickle.dumps(kernel))
        assert torch.equal(again.add_jitter(0.1).logdet(), expected)
