"""Batches of models through the flag: values, all derivatives, modes and errors are GPyTorch's, whoever shares what."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.constraints import Interval as Bounds
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import ConstantKernel, Kernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from gp_rangeformer import collect_reports, last_report, settings
from gp_rangeformer.allocation import free_cores
from gp_rangeformer.plugin import likelihood
from gp_rangeformer.report import ReportCollection
from gp_rangeformer.system.reason import Reason
from tests.conftest import HOST_DEFAULTS
from tests.plugin.market import (
    KERNELS,
    build,
    data,
    exact_path,
    flat_gradient,
    rangeformer_path,
    relative,
    spread_hyperparameters,
)

Shape = tuple[int, ...]
NOISE = 0.1  # in the mean of what is spread
SECOND = ("matern52_ard", "rational_quadratic", "periodic", "active")


def scaled(kernel: Kernel, b: torch.Size) -> Kernel:
    return ScaleKernel(kernel, batch_shape=b)


OURS: dict[str, Callable[[torch.Size], Kernel]] = {
    "rbf": KERNELS["rbf"],
    "matern32": KERNELS["matern32"],
    "matern52_ard": lambda b: scaled(MaternKernel(2.5, ard_num_dims=3, batch_shape=b), b),
    "rational_quadratic": KERNELS["rational_quadratic"],
    "periodic": KERNELS["periodic"],
    "with_a_constant": lambda b: scaled(MaternKernel(1.5, batch_shape=b), b) + ConstantKernel(batch_shape=b),
    "active": lambda b: scaled(
        RBFKernel(active_dims=(0, 1), batch_shape=b) * RQKernel(ard_num_dims=1, active_dims=(2,), batch_shape=b), b
    ),
    "active_outside": lambda b: MaternKernel(2.5, ard_num_dims=2, active_dims=(2, 0), batch_shape=b),
    "scales_of_one_kernel": lambda b: scaled(RBFKernel(), b),
    "one_scale_of_kernels": lambda b: ScaleKernel(RQKernel(batch_shape=b)) + scaled(PeriodicKernel(), b),
}
kernels = pytest.mark.parametrize("kernel", OURS)


class Asked:
    """A kernel, a likelihood and data, each with a batch of its own."""

    def __init__(
        self,
        kernel: str = "matern52_ard",
        n: int = 20,
        of_kernel: Shape = (3,),
        of_x: Shape = (),
        of_noise: Shape = (),
        of_y: Shape = (3,),
        likelihood: str = "gaussian",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.n = n
        self.x = data(n, of_x)[0].to(dtype).requires_grad_()
        self.y = data(n, of_y, seed=1)[1].to(dtype).requires_grad_()
        noise = torch.linspace(0.5, 1.5, n).expand(*of_noise, n) * NOISE
        self.likelihood: Any = {
            "gaussian": lambda: GaussianLikelihood(batch_shape=torch.Size(of_noise)),
            "fixed": lambda: FixedNoiseGaussianLikelihood(noise.to(dtype)),
            "fixed_and_learned": lambda: FixedNoiseGaussianLikelihood(
                noise.to(dtype), learn_additional_noise=True, batch_shape=torch.Size(of_noise)
            ),
        }[likelihood]()
        self.model: Any = torch.nn.ModuleDict(
            {
                "kernel": OURS[kernel](torch.Size(of_kernel)),
                "mean": gpytorch.means.ConstantMean(),
                "likelihood": self.likelihood,
            }
        ).to(dtype)
        if likelihood == "gaussian":
            self.likelihood.noise = NOISE
        spread_hyperparameters(self.model)

    def prior(self) -> Any:
        return MultivariateNormal(self.model["mean"](self.x), self.model["kernel"](self.x))

    def marginal(self) -> Any:
        return self.likelihood(self.prior())

    def values(self) -> Tensor:
        """log p(y) of every element."""
        return self.marginal().log_prob(self.y)

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {"x": self.x, "y": self.y, **dict(self.model.named_parameters())}


Answer = dict[str, Tensor]


def first_derivatives(asked: Asked) -> Answer:
    """Of the elements' values with weights of both signs; that of no element is that of another."""
    values = asked.values()
    weights = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).reshape(values.shape)
    return {"value": values.detach(), **derived((weights * values).sum(), asked)}


def derived(loss: Tensor, asked: Asked, create_graph: bool = False) -> Answer:
    leaves = asked.leaves
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph)
    return dict(zip(leaves, found, strict=True))


def second_derivatives(asked: Asked) -> Answer:
    """Along a vector with a part in every leaf."""
    gradients = derived(asked.values().square().sum(), asked, create_graph=True)
    generator = torch.Generator().manual_seed(5)
    along = torch.stack(
        [(g * torch.randn(g.shape, generator=generator, dtype=torch.float64)).sum() for g in gradients.values()]
    )
    return derived(along.sum(), asked)


def rounding(asked: Asked) -> float:
    """sqrt(n) eps times the condition of A, of two factorisations and two kernel matrices, which differ by a few eps in
    every entry; the condition is at most n times the largest variance, 4, over the smallest noise."""
    eps = torch.finfo(asked.x.dtype).eps
    return 4 * asked.n**0.5 * eps * (asked.n * 4 / (0.3 * NOISE))


def assert_close(found: Answer, expected: Answer, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        # Relative to the whole tensor; some gradients vanish.
        assert float((found[name] - value).norm()) <= tolerance * (1 + float(value.norm())), name


@contextlib.contextmanager
def answered(solver: str = "exact", path: Any = exact_path) -> Iterator[ReportCollection]:
    with path() as reports:
        yield reports
    assert {report.solver for report in reports} == {solver}


def assert_gpytorchs(
    make: Callable[[], Asked], answer: Callable[[Asked], Answer] = first_derivatives, factor: float = 1.0
) -> None:
    expected = answer(make())
    with answered():
        asked = make()
        found = answer(asked)
    assert_close(found, expected, factor * rounding(asked))


SHARING: dict[str, Callable[[Shape], dict[str, Any]]] = {
    "all_their_own": lambda b: {"of_kernel": b, "of_x": b, "of_noise": b, "of_y": b},
    "points_shared": lambda b: {"of_kernel": b, "of_x": (), "of_noise": b, "of_y": b},
    "noise_shared": lambda b: {"of_kernel": b, "of_x": b, "of_noise": (), "of_y": b},
    "parameters_shared": lambda b: {"of_kernel": (), "of_x": b, "of_noise": (), "of_y": b},
    "targets_shared": lambda b: {"of_kernel": b, "of_x": (), "of_noise": (), "of_y": ()},
    "all_but_the_last_axis_shared": lambda b: {"of_kernel": b[-1:], "of_x": b, "of_noise": b[-1:], "of_y": b},
}
sharings = pytest.mark.parametrize("sharing", SHARING)


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


@pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batch"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_targets_of_another_dtype_are_what_they_are_in_gpytorch(dtypes, batch) -> None:
    own, of_targets = dtypes

    def answer() -> Tensor:
        asked = Asked(of_kernel=batch, of_y=batch, dtype=own)
        return asked.marginal().log_prob(asked.y.detach().to(of_targets))

    expected = answer()
    with settings.rangeformer(), settings.exact_size(1), collect_reports() as reports:
        found = answer()
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=rounding(Asked(dtype=own)), atol=0)
    # A difference in float64 is what a float64 model takes.
    assert [report.reason for report in reports] == [Reason.MIXED_DTYPE if own == torch.float32 else Reason.EXACT_SMALL]


WRONG: list[tuple[Shape, Shape]] = [
    ((), (19,)),
    ((), (21,)),
    ((), (20, 20, 1, 3)),
    ((3,), (19,)),
    ((3,), (2, 20)),
    ((3,), (4, 20)),
    ((3,), (20, 3)),
    ((2, 2), (3, 20)),
    ((2, 2), (3, 2, 20)),
]


@pytest.mark.parametrize(("batch", "shape"), WRONG, ids=str)
@pytest.mark.parametrize("fast", [True, False], ids=["gpytorch", "botorch"])
def test_targets_of_a_wrong_shape_are_the_host_s_own_error(fast, batch, shape) -> None:
    def message() -> str:
        asked = Asked(of_kernel=batch)
        with pytest.raises(RuntimeError) as error:
            asked.marginal().log_prob(torch.ones(shape, dtype=torch.float64))
        return str(error.value)

    with gpytorch.settings.fast_computations(log_prob=fast):
        expected = message()
        with exact_path():
            found = message()
    # With fast log_prob off the host has torch's own code for it, and the flag the words of the fast one.
    assert found == expected or not fast


@pytest.mark.parametrize(
    ("batch", "shape"),
    [(b, s) for b in ((), (3,)) for s in ((), (1,), (20,), (3, 1), (3, 20), (2, 3, 20), (20, 3, 1))]
    + [((), (1, 20)), ((), (2, 1, 20)), ((2, 2), (2, 2, 1))],
    ids=str,
)
def test_targets_that_broadcast_do_as_in_gpytorch(batch, shape) -> None:
    targets = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)
    expected = Asked(of_kernel=batch).marginal().log_prob(targets).detach()
    with answered():
        asked = Asked(of_kernel=batch)
        found = asked.marginal().log_prob(targets).detach()
    assert_close({"value": found}, {"value": expected}, rounding(asked))


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


@pytest.mark.parametrize("batch", [(3,), (2, 2), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_report_is_of_all_elements_together(dtype, batch) -> None:
    exact = Asked(of_kernel=batch, of_y=batch).values().detach()
    with answered() as reports:
        values = Asked(of_kernel=batch, of_y=batch, dtype=dtype).values()
    (report,) = reports
    assert report is last_report()
    assert (report.operation, report.solver, report.reason) == ("inv_quad_logdet", "exact", Reason.EXACT_SMALL)
    assert (report.n, report.batch_shape, report.columns) == (20, batch, 1)
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert report.passes == report.columns_multiplied == exact.numel()
    assert report.iterations == 0
    assert 0 < report.residual < 20 * 1e3 * torch.finfo(dtype).eps
    assert report.logdet_method == "exact"
    assert report.notes == ()
    assert not report.fell_back
    assert report.mll is not None
    assert report.mll_interval is not None
    assert report.logdet_interval is not None
    assert report.logdet is not None
    assert report.mll == pytest.approx(float(values.detach().double().sum()), rel=100 * torch.finfo(dtype).eps)
    assert report.mll_interval.contains(report.mll)
    assert report.logdet_interval.contains(report.logdet)
    # In float32 inputs and parameters were rounded before K's entries were, which is not for the interval to say.
    if dtype == torch.float64:
        assert report.mll_interval.contains(float(exact.sum()))
        assert report.mll_interval.width < 1e-6
    assert "log p(y)/n" in report.summary()


def test_the_report_of_elements_that_need_float64_says_so() -> None:
    asked = Asked("rbf", 60, of_noise=(3,), dtype=torch.float32)
    asked.likelihood.noise_covar.register_constraint("raw_noise", Bounds(1e-6, 10.0))
    asked.likelihood.noise = torch.tensor([[0.1], [2e-4], [0.1]])
    wide = copy.deepcopy(asked.model).double()
    with settings.rangeformer(), settings.exact_size(1):
        values = asked.values()
    report = last_report()
    assert report is not None
    assert report.notes == ("factorised in float64",)
    prior = MultivariateNormal(wide["mean"](asked.x.double()), wide["kernel"](asked.x.double()))
    expected = wide["likelihood"](prior).log_prob(asked.y.double())
    # float32's eps in the entries of K, times 1 / noise.
    torch.testing.assert_close(values.double(), expected, rtol=60 * torch.finfo(torch.float32).eps / 2e-4, atol=0)


def with_noise(noise: list[float], kernel: str = "matern52_ard", equal_points: bool = False) -> Asked:
    """A noise of any sign for every element."""
    asked = Asked(kernel, of_x=(3,), of_noise=(3,))
    if equal_points:
        asked.x.data[1] = asked.x.data[1, :1]
    covariance = asked.likelihood.noise_covar
    covariance.register_constraint("raw_noise", Bounds(-100.0, 100.0, transform=None))  # type: ignore[arg-type]
    covariance.raw_noise.data = torch.tensor(noise, dtype=torch.float64).unsqueeze(-1)
    return asked


@pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")
def test_an_element_that_is_not_positive_definite_is_refused_as_gpytorch_refuses_it() -> None:
    with pytest.raises(NotPSDError):
        with_noise([0.1, -0.5, 0.1]).values()
    with exact_path(), pytest.raises(NotPSDError, match="raise the likelihood's noise"):
        with_noise([0.1, -0.5, 0.1]).values()


def test_an_element_without_noise_is_gpytorchs_still() -> None:
    expected = first_derivatives(with_noise([0.1, 0.0, 0.1], "matern32"))
    with answered() as reports:
        found = first_derivatives(with_noise([0.1, 0.0, 0.1], "matern32"))
    # No noise bounds the condition: its own does.
    dense = with_noise([0.1, 0.0, 0.1], "matern32").prior().covariance_matrix[1].detach()
    assert_close(found, expected, 20 * torch.finfo(torch.float64).eps * float(torch.linalg.cond(dense)))
    (report,) = reports
    assert report.mll == pytest.approx(float(found["value"].sum()), rel=1e-12)
    assert report.passes == 3


@pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")
def test_jitter_is_added_to_the_element_that_needs_it_and_is_said() -> None:
    noises = [0.1, 1e-18, 0.1]
    with answered() as reports:
        values = with_noise(noises, "rbf", equal_points=True).values().detach()
    (report,) = reports
    assert report.notes == ("jitter 1e-08 added to the diagonal",)
    assert report.batch_shape == (3,)
    with answered():
        well = with_noise([0.1, 0.1, 0.1], "rbf", equal_points=True).values().detach()
    torch.testing.assert_close(values[[0, 2]], well[[0, 2]], rtol=rounding(Asked()), atol=0)


BROKEN: dict[str, Callable[[Asked], Any]] = {
    "inputs": lambda asked: asked.x.data[1, 2].fill_(torch.nan),
    "targets": lambda asked: asked.y.data[1, 2].fill_(torch.nan),
    "infinite_targets": lambda asked: asked.y.data[2, 19].fill_(torch.inf),
    "noise": lambda asked: asked.likelihood.noise_covar.raw_noise.data[1].fill_(torch.nan),
    "lengthscale": lambda asked: asked.model["kernel"].base_kernel.raw_lengthscale.data[1].fill_(torch.nan),
    "outputscale": lambda asked: asked.model["kernel"].raw_outputscale.data[0].fill_(torch.inf),
}


@pytest.mark.parametrize("fast", [True, False], ids=["gpytorch", "botorch"])
@pytest.mark.parametrize("name", BROKEN)
def test_one_element_that_is_not_finite_is_a_clear_error(name, fast) -> None:
    asked = Asked(of_x=(3,), of_noise=(3,))
    BROKEN[name](asked)
    with exact_path(), gpytorch.settings.fast_computations(log_prob=fast), pytest.raises(NanError, match="NaN or inf"):
        asked.values()


@pytest.mark.parametrize("columns", [1, 4, 5, 9])
@pytest.mark.parametrize("reduce", [True, False])
def test_systems_with_few_and_with_many_columns_are_the_host_s(reduce, columns) -> None:
    rhs = torch.randn(3, 20, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def answer(asked: Asked) -> Answer:
        operator = asked.marginal().lazy_covariance_matrix.evaluate_kernel()
        quadratic, logdet = operator.inv_quad_logdet(rhs, logdet=True, reduce_inv_quad=reduce)
        leaves = {name: leaf for name, leaf in asked.leaves.items() if not name.startswith(("mean", "y"))}
        found = torch.autograd.grad(quadratic.square().sum() + logdet.sum(), list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        return {"quadratic": quadratic.detach(), "logdet": logdet.detach(), **gradients}

    assert_gpytorchs(Asked, answer, factor=20.0)


@pytest.fixture
def botorch_defaults() -> Iterator[None]:
    """What ``import botorch`` sets for the whole process, on its first import only."""
    pytest.importorskip("botorch")
    for (setting, attribute, _), value in zip(HOST_DEFAULTS, [False, False, False, 6, 4096, 4096], strict=True):
        setattr(setting, attribute, value)
    yield
    for setting, attribute, value in HOST_DEFAULTS:
        setattr(setting, attribute, value)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_botorch_s_models_of_several_outputs_are_batches(batch, outputs, botorch_defaults) -> None:
    from botorch.models import SingleTaskGP

    x = data(20, batch)[0]
    y = torch.stack([torch.sin((3 + k) * x[..., 0]) for k in range(outputs)], dim=-1)

    def answer() -> Answer:
        model: Any = SingleTaskGP(x, y)
        model.train()
        mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        loss = -mll(model(*model.train_inputs), model.train_targets)
        leaves = dict(model.named_parameters())
        found = torch.autograd.grad(loss.sum(), list(leaves.values()))
        return {"value": loss.detach(), **dict(zip(leaves, found, strict=True))}

    expected = answer()
    with answered() as reports:
        found = answer()
    assert reports[0].batch_shape == (*batch, *((outputs,) if outputs > 1 else ()))
    # BoTorch's noise starts at 0.02, which is less than NOISE.
    assert_close(found, expected, 10 * rounding(Asked()))
