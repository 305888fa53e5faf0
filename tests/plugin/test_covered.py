"""What is said of a kernel by its classes alone is what recognition finds, and follows its changes."""

from __future__ import annotations

from unittest import mock

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel, LinearKernel, MaternKernel, PolynomialKernel, RBFKernel, ScaleKernel

from gp_rangeformer import settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin import renewal
from gp_rangeformer.plugin.covered import covered, parameters_of, prior_variance, tensors_of
from gp_rangeformer.plugin.predictions import PutOff
from gp_rangeformer.plugin.recognition import recognise_selected
from tests.plugin.market import build

X = torch.rand(7, 2, dtype=torch.float64)
KERNELS = {
    "scaled": (lambda: ScaleKernel(RBFKernel(ard_num_dims=2)), True),
    "sum": (lambda: ScaleKernel(RBFKernel()) + MaternKernel(1.5) * RBFKernel(active_dims=(0,)), True),
    "polynomial": (lambda: ScaleKernel(PolynomialKernel(2)), False),
    "sum_with_linear": (lambda: ScaleKernel(RBFKernel()) + LinearKernel(), False),
    "mixture": (lambda: gpytorch.kernels.SpectralMixtureKernel(2, ard_num_dims=2), False),
    "batch": (lambda: ScaleKernel(RBFKernel(batch_shape=torch.Size([1])), batch_shape=torch.Size([1])), False),
    "with_gradients": (gpytorch.kernels.RBFKernelGrad, False),
}


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_what_recognition_finds(name: str) -> None:
    make, expected = KERNELS[name]
    kernel = make().double()
    assert covered(kernel) is expected
    assert isinstance(recognise_selected(kernel, X), FusedKernel) is expected


@pytest.mark.parametrize("name", ["scaled", "sum"])
def test_prior_variances_are_the_diagonal(name: str) -> None:
    kernel = KERNELS[name][0]().double()
    expected = torch.full((7,), prior_variance(kernel), dtype=X.dtype)
    torch.testing.assert_close(kernel(X).diagonal().detach(), expected)


@pytest.mark.parametrize("name", KERNELS)
def test_shapes_are_the_hosts(name: str) -> None:
    kernel = KERNELS[name][0]().double()
    own = PutOff(X, X[:3], kernel=kernel)
    assert own.shape == gpytorch.lazy.LazyEvaluatedKernelTensor(X, X[:3], kernel=kernel).shape
    assert own.shape == own.evaluate_kernel().shape


def test_shapes_of_known_kernels_are_not_asked_of_their_parts() -> None:
    kernel = KERNELS["sum"][0]().double()
    with mock.patch.object(Kernel, "batch_shape", new_callable=mock.PropertyMock) as asked:
        assert PutOff(X, X[:3], kernel=kernel).shape == (7, 3)
    assert not asked.called


def test_tensors_are_the_modules() -> None:
    model = build("ard").model
    assert set(map(id, parameters_of(model))) == set(map(id, model.parameters()))
    assert set(map(id, tensors_of(model))) == {*map(id, model.parameters()), *map(id, model.buffers())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_put_off_for_kernels_without_a_fused_form(dtype: torch.dtype) -> None:
    problem = build("spectral_mixture", n=700, dtype=dtype)
    with settings.rangeformer(), torch.no_grad(), mock.patch.object(PutOff, "evaluate_kernel") as evaluated:
        assert problem.predict().variance.isfinite().all()
    assert not evaluated.called


def test_a_kernel_that_changes_is_asked_again() -> None:
    kernel = ScaleKernel(RBFKernel())
    assert covered(kernel)
    kernel.base_kernel = PolynomialKernel(2)
    assert not covered(kernel)


def test_the_prior_of_training_points_is_made_once_where_the_host_answers_first() -> None:
    problem = build("spectral_mixture", n=300, dtype=torch.float32)
    problem.model.eval()
    with settings.rangeformer(), torch.no_grad(), mock.patch.object(renewal, "strategy_as_it_is") as another:
        forward = problem.model.forward
        with mock.patch.object(problem.model, "forward", side_effect=forward) as asked:
            assert problem.predict().mean.isfinite().all()
    assert asked.call_count == 2  # the training points' own, and one beside the test points
    assert not another.called
