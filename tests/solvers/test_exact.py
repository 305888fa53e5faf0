from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning

from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.system.systems import kernel_matrix, points, spectrum_matrix, system, targets


def autograd_reference(kernel, noise, rhs):
    """Values and gradients by autograd through torch's own Cholesky, float64."""
    kernel = kernel.clone().requires_grad_()
    factor = torch.linalg.cholesky(kernel + torch.diag(noise))
    inv_quad = torch.linalg.solve_triangular(factor, rhs, upper=False).square().sum(0)
    logdet = 2 * factor.diagonal().log().sum()
    return inv_quad, logdet, kernel


def test_values_and_gradients_equal_autograd_through_cholesky() -> None:
    kernel = kernel_matrix(points(60, 3))
    noise = torch.logspace(-2, 0, 60, dtype=torch.float64)
    rhs = targets(60, 2)
    inv_quad, logdet, leaf = autograd_reference(kernel, noise, rhs)
    weights = torch.tensor([0.7, -1.3], dtype=torch.float64)
    ((weights * inv_quad).sum() - 0.4 * logdet).backward()

    evaluation = Exact().prepare(system(kernel, noise)).evaluate(rhs)
    torch.testing.assert_close(evaluation.inv_quad, inv_quad.detach(), rtol=1e-12, atol=0)
    assert evaluation.logdet is not None
    assert evaluation.logdet.value == pytest.approx(float(logdet.detach()), rel=1e-13)
    gradient = evaluation.weight.dense(weights, torch.tensor(-0.4, dtype=torch.float64))
    # autograd through a factorisation differentiates one triangle: compare the symmetric parts
    assert leaf.grad is not None
    expected = 0.5 * (leaf.grad + leaf.grad.mT)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    diagonal = evaluation.weight.dense(weights, torch.tensor(-0.4, dtype=torch.float64)).diagonal()
    torch.testing.assert_close(diagonal, expected.diagonal(), rtol=1e-10, atol=1e-10)


def test_float32_is_promoted_to_float64_where_rounding_would_decide() -> None:
    kernel = kernel_matrix(points(80, 1), "rbf", 2.0)
    calm = Exact().prepare(system(kernel, 0.1, torch.float32))
    tiny = Exact().prepare(system(kernel, 1e-5, torch.float32))
    assert calm.factor.dtype == torch.float32
    assert not calm.notes()
    assert tiny.factor.dtype == torch.float64
    assert tiny.notes() == ["factorised in float64"]
    dense = system(kernel, 1e-5, torch.float32).to_dense(torch.float64)
    assert tiny.logdet().value == pytest.approx(float(torch.logdet(dense)), rel=1e-9)


def test_the_inverse_root_is_triangular_and_exact() -> None:
    kernel = kernel_matrix(points(40, 2))
    linear_system = system(kernel, 0.05)
    root = Exact().prepare(linear_system).inv_root()
    assert torch.equal(root.value, root.value.triu())
    identity = root.value @ root.value.mT @ linear_system.to_dense()
    torch.testing.assert_close(identity, torch.eye(40, dtype=torch.float64), rtol=0, atol=1e-10)


def test_jitter_is_the_last_resort_and_is_said() -> None:
    eigenvalues = torch.linspace(0.1, 1, 30, dtype=torch.float64)
    eigenvalues[0] = -1e-7  # float64 jitter of the host: 1e-8, 1e-7, 1e-6
    linear_system = system(spectrum_matrix(eigenvalues), 1e-12)
    with pytest.warns(NumericalWarning, match="jitter"):
        prepared = Exact().prepare(linear_system)
    assert prepared.jitter == pytest.approx(1e-7)
    assert "jitter" in prepared.notes()[0]


@pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")
def test_a_negative_matrix_is_refused_as_the_host_refuses_it() -> None:
    with pytest.raises(NotPSDError, match="raise the likelihood's noise"):
        Exact().prepare(system(spectrum_matrix(torch.linspace(-1, 1, 20, dtype=torch.float64)), 1e-3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_is_not_finite_is_refused(bad, dtype) -> None:
    kernel = kernel_matrix(points(20, 1))
    kernel[3, 7] = kernel[7, 3] = bad
    with pytest.raises(NanError, match="NaN or infinity"):
        Exact().prepare(system(kernel, 0.1, dtype))


def test_a_solution_that_float32_cannot_represent_to_tolerance_is_said() -> None:
    kernel = kernel_matrix(points(150, 1), "rbf", 10.0)
    solution = Exact(tolerance=1e-6).prepare(system(kernel, 1e-6, torch.float32)).solve(targets(150).float())
    assert solution.reason is Reason.ROUNDING


@pytest.mark.parametrize(
    ("kernel", "noise"),
    [(torch.ones(3, 4), torch.ones(3)), (torch.ones(0, 0), torch.ones(0)), (torch.eye(3), torch.ones(2))],
)
def test_shapes_that_do_not_belong_together_are_refused(kernel, noise) -> None:
    # the type checker of the tests refuses some of them first
    with pytest.raises((ValueError, TypeCheckError), match=r"must|Type-check"):
        LinearSystem(kernel, noise)
