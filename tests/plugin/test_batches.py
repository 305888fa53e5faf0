"""Batches of models through the flag: values and all derivatives are GPyTorch's, whoever shares what."""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.distributions import MultivariateNormal

from gp_rangeformer import last_report, settings
from tests.plugin.batches import (
    OURS,
    SECOND,
    SHARING,
    Answer,
    Asked,
    Shape,
    answered,
    assert_close,
    assert_gpytorchs,
    derived,
    first_derivatives,
    kernels,
    rounding,
    second_derivatives,
    sharings,
)
from tests.plugin.market import build, rangeformer_path, relative


@kernels
@sharings
@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_values_and_gradients_are_gpytorchs_whoever_shares_what(batch, sharing, kernel) -> None:
    for n in (1, 2, 20):
        assert_gpytorchs(lambda n=n: Asked(kernel, n, **SHARING[sharing](batch)))


@kernels
def test_so_they_are_for_more_points_than_one_row_of_pairs_or_one_thread_takes(kernel) -> None:
    assert_gpytorchs(lambda: Asked(kernel, 150, **SHARING["points_shared"]((2,))))


@sharings
@pytest.mark.parametrize("path", ["botorch", "no_fused_kernels", "no_compiled_kernels", "tiles"])
def test_and_by_every_way_to_the_solvers(path, sharing) -> None:
    way = {
        "botorch": lambda: gpytorch.settings.fast_computations(log_prob=False),
        "no_fused_kernels": lambda: settings.fused_kernels(False),
        "no_compiled_kernels": lambda: settings.fused_kernels("tensors"),
        "tiles": lambda: settings.kernel_storage("tiles"),
    }[path]
    for batch in ((3,), (2, 2), (1,)):

        def make(batch: Shape = batch) -> Asked:
            return Asked("active", 12, **SHARING[sharing](batch))

        expected = first_derivatives(make())
        with answered(), way():
            asked = make()
            found = first_derivatives(asked)
        assert_close(found, expected, rounding(asked))


@pytest.mark.parametrize(
    ("of_kernel", "of_x", "of_noise", "of_y"),
    [
        ((3,), (2, 1), (), (2, 3)),
        ((2, 3), (3,), (3,), (2, 3)),
        ((1,), (3,), (), (3,)),
        ((3,), (1,), (1,), (3,)),
        ((1,), (1,), (1,), (1,)),
        ((2, 1), (3,), (2, 3), (2, 3)),
        ((), (), (3,), (3,)),  # several noises for one kernel matrix
        ((3,), (3,), (2, 3), (2, 3)),
        ((), (1,), (3,), (3,)),
        ((), (), (), (5,)),  # several label vectors
        ((3,), (), (), (2, 3)),
        ((3,), (3,), (3,), (4, 1, 3)),
        ((2, 3), (), (), (1, 2, 3)),
        ((3,), (), (), ()),
        ((2, 2), (), (2,), ()),
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["rational_quadratic", "with_a_constant"])
def test_batches_broadcast_as_gpytorchs_do(kernel, of_kernel, of_x, of_noise, of_y) -> None:
    assert_gpytorchs(lambda: Asked(kernel, 9, of_kernel, of_x, of_noise, of_y))


@pytest.mark.parametrize("likelihood", ["fixed", "fixed_and_learned"])
@pytest.mark.parametrize("of_noise", [(), (3,), (2, 3)], ids=str)
def test_noises_that_are_given_are_those_of_their_elements(of_noise, likelihood) -> None:
    assert_gpytorchs(lambda: Asked(of_noise=of_noise, of_y=of_noise or (3,), likelihood=likelihood))


@pytest.mark.parametrize("kernel", SECOND)
@pytest.mark.parametrize("sharing", ["all_their_own", "points_shared", "parameters_shared"])
def test_second_derivatives_are_gpytorchs(sharing, kernel) -> None:
    """Of values as large as n, which are squared: hence their factor."""
    for batch in ((3,), (2, 2)):
        assert_gpytorchs(
            lambda batch=batch: Asked(kernel, 12, **SHARING[sharing](batch)), second_derivatives, factor=12.0
        )


def test_third_derivatives_too() -> None:
    def third(asked: Asked) -> Answer:
        gradients = derived(asked.values().sum(), asked, create_graph=True)
        again = derived(torch.stack([g.square().sum() for g in gradients.values()]).sum(), asked, create_graph=True)
        return derived(torch.stack([g.sum() for g in again.values()]).sum(), asked)

    assert_gpytorchs(lambda: Asked("periodic", 6), third, factor=36.0)


@pytest.mark.parametrize("kernel", SECOND)
def test_gradients_of_all_elements_at_once_are_those_one_by_one(kernel) -> None:
    """is_grads_batched."""

    def at_once(asked: Asked) -> Answer:
        leaves, values = asked.leaves, asked.values()
        many = torch.eye(3, dtype=values.dtype)
        return dict(
            zip(leaves, torch.autograd.grad(values, list(leaves.values()), many, is_grads_batched=True), strict=True)
        )

    def one_by_one(asked: Asked) -> Answer:
        leaves, values = asked.leaves, asked.values()
        found = [torch.autograd.grad(value, list(leaves.values()), retain_graph=True) for value in values]
        return {name: torch.stack(parts) for name, parts in zip(leaves, zip(*found, strict=True), strict=True)}

    def make() -> Asked:
        return Asked(kernel, 15, **SHARING["points_shared"]((3,)))

    expected = one_by_one(make())
    with answered():
        asked = make()
        assert_close(at_once(asked), expected, rounding(asked))
        assert_close(one_by_one(asked), expected, rounding(asked))


def test_the_gradient_of_one_element_leaves_the_others_alone() -> None:
    asked = Asked(of_x=(3,), of_noise=(3,))
    with answered():
        found = derived(asked.values()[1], asked)
    for name, gradient in found.items():
        if name != "mean.raw_constant":
            assert torch.equal(gradient[[0, 2]], torch.zeros_like(gradient[[0, 2]])), name
            assert float(gradient[1].norm()) > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_elements_are_the_models_that_they_would_be_alone(dtype) -> None:
    problem = build("nested", n=40, batch=(3,), dtype=dtype)
    with answered():
        values = problem.likelihood(problem.model.train()(problem.x)).log_prob(problem.y)
        for element, value in enumerate(values):
            alone = problem.model.covar_module[element]
            mean = problem.model.mean_module.constant[element].expand(40)
            noise = problem.likelihood.noise[element].expand(40)
            covariance: Any = alone(problem.x[element]).add_diagonal(noise)
            single = MultivariateNormal(mean, covariance).log_prob(problem.y[element])
            torch.testing.assert_close(value, single, rtol=40 * 40 * torch.finfo(dtype).eps, atol=0)


def test_float32_agrees_with_float64() -> None:
    for kernel in OURS:
        expected = first_derivatives(Asked(kernel, 30))
        with answered():
            found = first_derivatives(Asked(kernel, 30, dtype=torch.float32))
        assert_close(
            {name: value.double() for name, value in found.items()},
            expected,
            rounding(Asked(n=30, dtype=torch.float32)),
        )


@pytest.mark.parametrize("sharing", ["all_their_own", "points_shared", "targets_shared"])
@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_where_the_range_spans_the_kernel_the_solver_s_gradients_are_gpytorchs(batch, sharing) -> None:
    """Fewer points than landmarks: the probes have next to nothing left to estimate."""
    # Not of two points: there the last pivot is rounding, and on some processors the exact path answers, as it says.
    for kernel in ("rbf", "rational_quadratic", "with_a_constant"):

        def make(kernel: str = kernel) -> Asked:
            return Asked(kernel, 20, **SHARING[sharing](batch))

        expected = first_derivatives(make())
        with answered("rangeformer", rangeformer_path):
            found = first_derivatives(make())
        # A smooth kernel's landmarks end where what is left of K is a thousandth of the tolerance of a step.
        assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_the_solver_answers_for_a_batch_as_for_its_elements(batch) -> None:
    """With probes left to estimate."""
    problem = build("matern32", n=150, batch=batch)
    with answered("rangeformer", rangeformer_path), settings.deterministic():
        loss, gradient = problem.loss_and_gradient()
        report = last_report()
        total = 0.0
        for index in np.ndindex(*batch):
            alone = build("matern32", n=150)
            for parameter, whole in zip(alone.model.parameters(), problem.model.parameters(), strict=True):
                parameter.data = whole.data[index].reshape(parameter.shape).clone()
            alone.x, alone.y = problem.x[index], problem.y[index]
            alone.model.set_train_data(alone.x, alone.y, strict=False)
            total += alone.loss_and_gradient()[0]
            for parameter, whole in zip(alone.model.parameters(), problem.model.parameters(), strict=True):
                assert whole.grad is not None
                assert relative(whole.grad[index].reshape(parameter.shape), parameter.grad) < 1e-6  # type: ignore[arg-type]
    assert loss == pytest.approx(total, rel=1e-6)
    assert report is not None
    assert report.batch_shape == batch
    assert report.mll_interval is not None
    # The value is an estimate there; the exact one is inside.
    assert report.mll_interval.contains(-150 * build("matern32", n=150, batch=batch).loss().item())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("part", ["kernel", "likelihood", "mean"])
def test_what_is_frozen_has_no_gradient_and_the_rest_has_its_own(part) -> None:
    expected = first_derivatives(Asked())
    with answered():
        asked = Asked()
        asked.model[part].requires_grad_(False)
        loss = (torch.linspace(-1, 2, 3, dtype=torch.float64) * asked.values()).sum()
        learned = {name: leaf for name, leaf in asked.leaves.items() if leaf.requires_grad}
        found = torch.autograd.grad(loss, list(learned.values()))
    assert 0 < len(learned) < len(asked.leaves)
    assert_close(dict(zip(learned, found, strict=True)), {name: expected[name] for name in learned}, rounding(asked))


class Slanted(gpytorch.kernels.RBFKernel):
    """K_ij and K_ji differ by a billionth, as kernels do whose evaluation is rough."""

    def forward(self, x1: Any, x2: Any, diag: bool = False, **params: Any) -> Any:
        found = super().forward(x1, x2, diag=diag, **params)
        return found if diag else found * (1 + 1e-9 * torch.ones_like(found).tril())


def test_a_batch_that_is_not_symmetric_is_answered_together(monkeypatch) -> None:
    """By its symmetric part: one by one it took twenty times as long as the host."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 12, 2, dtype=torch.float64, generator=generator)
    y = torch.sin(4 * x.sum(-1)) + 0.1 * torch.randn(5, 12, dtype=torch.float64, generator=generator)
    shape = torch.Size([5])
    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=shape)

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, likelihood)
            self.kernel = Slanted(batch_shape=shape)

        def forward(self, x: torch.Tensor) -> MultivariateNormal:
            return MultivariateNormal(x.new_zeros(x.shape[:-1]), self.kernel(x))

    model: Any = Model().double()
    mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)

    def answer() -> list[torch.Tensor]:
        loss = mll(model(x), y).sum()
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    def refused(*arguments: Any, **options: Any) -> None:
        raise AssertionError("one by one")

    with settings.rangeformer(), settings.exact_size(1):
        with monkeypatch.context() as patch:
            patch.setattr("gp_rangeformer.plugin.likelihood._one_by_one", refused)
            together = answer()
            report = last_report()
        with monkeypatch.context() as patch:
            patch.setattr("gp_rangeformer.plugin.likelihood._together", lambda *arguments: None)
            apart = answer()
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    assert "the kernel matrix is not symmetric: its symmetric part answers" in report.notes
