"""The autograd functions by themselves, on matrices that are leaves: gradients, graphs, what is not asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gp_rangeformer.plugin.autograd import likelihood_terms, solved
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.system.answers import Evaluation
from gp_rangeformer.system.linear_system import LinearSystem

N, M = 6, 3


def leaves(grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """K (through a square root, so that it stays symmetric), noise and right-hand sides."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(N, N, generator=generator, dtype=torch.float64) / N**0.5
    noise = 0.5 + torch.rand(N, generator=generator, dtype=torch.float64)
    rhs = torch.randn(N, M, generator=generator, dtype=torch.float64)
    return root.requires_grad_(grad), noise.requires_grad_(grad), rhs.requires_grad_(grad)


def evaluation(kernel: Tensor, noise: Tensor, rhs: Tensor, with_logdet: bool = True) -> Evaluation:
    system = LinearSystem(kernel.detach(), noise.detach())
    return Exact().prepare(system).evaluate(rhs.detach(), with_logdet)


def solver(kernel: Tensor, noise: Tensor) -> Callable[[Tensor], Tensor]:
    prepared = Exact().prepare(LinearSystem(kernel.detach(), noise.detach()))
    return lambda rhs: prepared.solve(rhs.detach()).value


def ours(root: Tensor, noise: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    kernel = root @ root.mT
    return likelihood_terms(kernel, noise, rhs, evaluation(kernel, noise, rhs))


def total(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return outputs[0].sum() + outputs[1]


def ours_solve(root: Tensor, noise: Tensor, rhs: Tensor) -> Tensor:
    kernel = root @ root.mT
    return solved(kernel, noise, rhs, solver(kernel, noise))


def test_the_gradient_of_log_determinant_and_quadratic_form_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(ours, leaves())


def test_the_gradient_of_a_solve_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(ours_solve, leaves())


def test_second_derivatives_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradgradcheck(ours, leaves())
    assert torch.autograd.gradgradcheck(ours_solve, leaves())


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_what_is_asked_for_gets_a_gradient(wanted: tuple[int, ...]) -> None:
    everything = leaves()
    dense = torch.autograd.grad(total(ours(*everything)), everything)
    dense_solve = torch.autograd.grad(ours_solve(*everything).sum(), everything)
    inputs = leaves(grad=False)
    for index in wanted:
        inputs[index].requires_grad_()
    asked = [inputs[index] for index in wanted]
    found = torch.autograd.grad(total(ours(*inputs)), asked)
    found_solve = torch.autograd.grad(ours_solve(*inputs).sum(), asked)
    for position, index in enumerate(wanted):
        torch.testing.assert_close(found[position], dense[index])
        torch.testing.assert_close(found_solve[position], dense_solve[index])


def test_nothing_is_recorded_where_nothing_needs_a_gradient() -> None:
    assert not any(out.requires_grad for out in ours(*leaves(grad=False)))
    assert not ours_solve(*leaves(grad=False)).requires_grad
    with torch.no_grad():
        assert not any(out.requires_grad for out in ours(*leaves()))


def test_without_a_log_determinant_its_output_is_zero_and_passes_no_gradient() -> None:
    root, noise, rhs = leaves()
    kernel = root @ root.mT
    inv_quad, logdet = likelihood_terms(kernel, noise, rhs, evaluation(kernel, noise, rhs, with_logdet=False))
    assert logdet.item() == 0
    expected = (rhs * torch.linalg.solve(kernel + noise.diag_embed(), rhs)).sum(0)
    torch.testing.assert_close(inv_quad, expected)
    torch.testing.assert_close(
        torch.autograd.grad((inv_quad.sum() + logdet), noise, retain_graph=True),
        torch.autograd.grad(expected.sum(), noise, retain_graph=True),
    )


def test_weights_on_single_columns_reach_them_alone() -> None:
    root, noise, rhs = leaves()
    inv_quad, _ = ours(root, noise, rhs)
    (gradient,) = torch.autograd.grad(inv_quad[1], rhs)
    assert not gradient[:, [0, 2]].any()
    assert gradient[:, 1].all()


def test_the_weights_diagonal_is_the_noise_gradient_also_where_the_kernel_needs_none() -> None:
    """Two code paths: the diagonal of the n x n weight, and that of its factors."""
    root, noise, rhs = leaves()
    system = LinearSystem((root @ root.mT).detach(), noise.detach())
    prepared = Certified(rank=3, num_probes=4, tolerance=1e-9).prepare(system, Memory())
    result = prepared.evaluate(rhs.detach())
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    thin = result.weight.thin(*weights)
    assert thin is not None
    torch.testing.assert_close(thin.own_diagonal(), result.weight.dense(*weights).diagonal())
