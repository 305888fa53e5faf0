"""A model that hands its kernel matrix to whoever changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import torch
from linear_operator import to_linear_operator
from torch import Tensor

from tests.plugin.market import GP, Problem, build

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


def kept(problem: Problem) -> list[Tensor]:
    """Filled by the next loss with its kernel matrix."""
    seen: list[Tensor] = []
    problem.model.change = in_place(lambda kernel, extra: seen.append(kernel))
    return seen
