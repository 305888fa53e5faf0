"""Two inputs that are equal now are two arguments still: each has its own gradient, whatever the other one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from linear_operator import settings as host_settings
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.plugin import entrances, unevaluated
from tests.conftest import HOST_DEFAULTS
from tests.plugin.market import GP, Problem, build, exact_path, rangeformer_path, relative

pytestmark = pytest.mark.filterwarnings("ignore:The input matches the stored training data")
N = 120  # above settings.exact_size
Pair = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def points() -> Tensor:
    return torch.rand(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weight() -> Tensor:
    """Not symmetric: the two arguments' gradients differ."""
    return torch.randn(N, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


KERNELS: dict[str, Callable[[], Kernel]] = {
    "rbf": RBFKernel,
    "scaled_matern": lambda: ScaleKernel(MaternKernel(2.5, ard_num_dims=3)),
    "sum": lambda: ScaleKernel(RBFKernel(active_dims=(0, 2))) + PeriodicKernel(active_dims=(1,)),
}
SHUFFLED = torch.randperm(N, generator=torch.Generator().manual_seed(2))

# From the leaf x to the two arguments; x itself counts for every path that leads back to it.
PAIRS: dict[str, Pair] = {
    "x2_left_out": lambda x: (x, None),
    "x_twice": lambda x: (x, x),
    "detached_second": lambda x: (x, x.detach()),
    "detached_first": lambda x: (x.detach(), x),
    "no_gradient_at_all": lambda x: (x.detach(), x.detach().clone()),
    "clone": lambda x: (x, x.clone()),
    "clone_detached": lambda x: (x, x.detach().clone()),
    "times_one": lambda x: (x, 1 * x),
    "both_derived": lambda x: (1 * x, 1 * x),
    "scaled_gradient": lambda x: (x, 2 * x - x.detach()),
    "view": lambda x: (x, x.view(N, 3)),
    "slices_of_one": lambda x: (torch.cat([x, x])[:N], torch.cat([x, x])[N:]),
    "slices_of_the_same": lambda x: (x[:N], x[:]),
    "expanded": lambda x: (x, x.expand(1, N, 3)),
    "expanded_twice": lambda x: (x.expand(2, N, 3), x.expand(2, N, 3)),
    "columns_first": lambda x: (x, x.mT.contiguous().mT),
    "other_order": lambda x: (x, x[SHUFFLED]),
    "to_the_other_dtype": lambda x: (x, x.detach().float()),
    "requires_grad_of_its_own": lambda x: (x, x.detach().clone().requires_grad_()),
    "parameter": lambda x: (x, torch.nn.Parameter(x.detach().clone())),
    "tangent_half": lambda x: (x, 0.5 * (x + x.detach())),
}


def derived(kernel: Kernel, pair: Pair, grad: bool = True) -> dict[str, Tensor]:
    """K, and d sum(W * K) for x, for both arguments where they ask for a gradient, and for the parameters."""
    x = points().requires_grad_(grad)
    first, second = pair(x)
    matrix = kernel(first, second).to_dense()
    sources = {"x": x, **dict(kernel.named_parameters())}
    if grad:
        sources |= {
            name: argument
            for name, argument in (("first", first), ("second", second))
            if argument is not None and argument.requires_grad
        }
    sources = {name: source for name, source in sources.items() if source.requires_grad}
    found = torch.autograd.grad(
        (weight() * matrix).sum(), list(sources.values()), allow_unused=True, materialize_grads=True
    )
    return {"K": matrix.detach(), **dict(zip(sources, found, strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        # Some gradients vanish: then the difference of two large numbers is small.
        assert float((found[name] - value).norm()) < tolerance * max(1.0, float(value.norm())), name


@pytest.mark.parametrize("grad", [True, False], ids=["x_asks", "x_does_not"])
@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_every_argument_has_gpytorchs_gradient(pair, kernel, grad) -> None:
    """Default settings. GPyTorch's matrix of a point with itself rounds otherwise: hence 1e-10, not the last bit."""
    expected = derived(KERNELS[kernel]().double(), PAIRS[pair], grad)
    with settings.rangeformer():
        found = derived(KERNELS[kernel]().double(), PAIRS[pair], grad)
    assert_same(found, expected, 1e-7 if pair == "to_the_other_dtype" else 1e-10)


@pytest.mark.parametrize(
    ("pair", "fused"),
    [("x2_left_out", True), ("x_twice", True), ("no_gradient_at_all", True), ("clone", False), ("view", False)],
)
def test_tiles_answer_for_one_set_of_points_and_no_other(pair, fused) -> None:
    with settings.rangeformer(), mock.patch.object(entrances, "evaluate_fused", wraps=entrances.evaluate_fused) as spy:
        derived(RBFKernel().double(), PAIRS[pair])
    assert spy.called is fused


def test_without_grad_mode_equal_points_are_one_set() -> None:
    x, kernel = points().requires_grad_(), RBFKernel().double()
    with settings.rangeformer(), mock.patch.object(entrances, "evaluate_fused", wraps=entrances.evaluate_fused) as spy:
        with torch.no_grad():
            matrix = kernel(x, x.clone()).to_dense()
        assert spy.called
    torch.testing.assert_close(matrix, kernel(x).to_dense())


PATHS = {"exact": exact_path, "rangeformer": rangeformer_path, "defaults": settings.rangeformer}
paths = pytest.mark.parametrize("path", PATHS)


def posterior_gradients(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    """Mean, variance and their gradients for the test inputs."""
    model.train()
    model.eval()
    inputs = inputs.detach().clone().requires_grad_()
    prediction = model(inputs)
    ramp = torch.linspace(-1, 1, inputs.shape[-2], dtype=inputs.dtype)
    (of_mean,) = torch.autograd.grad((prediction.mean * ramp).sum(), inputs, retain_graph=True)
    (of_variance,) = torch.autograd.grad((prediction.variance * ramp).sum(), inputs)
    return {
        "mean": prediction.mean.detach(),
        "variance": prediction.variance.detach(),
        "of_mean": of_mean,
        "of_variance": of_variance,
    }


@paths
@pytest.mark.parametrize("fast_pred_var", [False, True], ids=["solve", "love"])
@pytest.mark.parametrize("asked", ["training", "reordered", "some", "training_and_others"])
def test_predictions_at_training_inputs_have_gpytorchs_gradients(asked, fast_pred_var, path) -> None:
    problem = build(n=N)
    x = problem.x
    inputs = {
        "training": x,
        "reordered": x[SHUFFLED],
        "some": x[:7],
        "training_and_others": torch.cat([x, problem.test_x]),
    }[asked]
    with gpytorch.settings.fast_pred_var(fast_pred_var):
        expected = posterior_gradients(problem.model, inputs)
        with PATHS[path]():
            found = posterior_gradients(problem.model, inputs)
    assert_same(found, expected, 1e-5)


class Deep(GP):
    """A kernel of learned features."""

    def __init__(self, problem: Problem) -> None:
        own = problem.model
        super().__init__(problem.x, problem.y, own.likelihood, own.mean_module, own.covar_module)
        self.network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

    def forward(self, x: Tensor) -> Any:
        features = self.network(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(features))


def deep() -> Problem:
    problem = build(n=N)
    torch.manual_seed(3)
    problem.model = Deep(problem)
    return problem


def test_a_deep_kernel_is_one_set_of_points_and_trains_its_network() -> None:
    loss, gradient = deep().loss_and_gradient()
    spy = mock.patch.object(unevaluated, "recognise_selected", wraps=unevaluated.recognise_selected)
    with settings.rangeformer(), spy as called:
        found_loss, found = deep().loss_and_gradient()
    assert called.called
    assert found_loss == pytest.approx(loss, rel=1e-10)
    assert relative(found, gradient) < 1e-9


@paths
def test_a_deep_kernel_at_its_training_inputs_has_gpytorchs_gradients(path) -> None:
    problem = deep()
    expected = posterior_gradients(problem.model, problem.x)
    with PATHS[path]():
        assert_same(posterior_gradients(problem.model, problem.x), expected, 1e-5)


@paths
def test_a_deep_kernels_predictions_train_its_network(path) -> None:
    """Training features and equal test features are one tensor's slices, and both have gradients."""

    def gradient(problem: Problem) -> Tensor:
        with gpytorch.settings.detach_test_caches(False):
            prediction = problem.predict(problem.x)
            problem.model.zero_grad()
            (prediction.mean.square().sum() + prediction.variance.sum()).backward()
        return torch.cat([parameter.grad.reshape(-1) for parameter in problem.model.network.parameters()])

    expected = gradient(deep())
    with PATHS[path]():
        assert relative(gradient(deep()), expected) < 1e-5


@paths
def test_fantasies_at_training_inputs_have_gpytorchs_gradients(path) -> None:
    """New observations where there are some already, asked about where they are."""

    def gradients() -> dict[str, Tensor]:
        problem = build(n=N)
        problem.predict()
        inputs = problem.x[:3].clone().requires_grad_()
        fantasy = problem.model.get_fantasy_model(inputs, problem.y[:3])
        mean = fantasy(problem.x[:10]).mean
        return {"mean": mean.detach(), "of_mean": torch.autograd.grad(mean.sum(), inputs)[0]}

    expected = gradients()
    with PATHS[path]():
        assert_same(gradients(), expected, 1e-5)


@pytest.fixture
def botorch_defaults() -> Iterator[None]:
    """What ``import botorch`` sets for the whole process, on its first import only."""
    import botorch  # noqa: F401

    for (setting, attribute, _), value in zip(HOST_DEFAULTS, [False, False, False, 6, 4096, 4096], strict=True):
        setattr(setting, attribute, value)
    yield
    for setting, attribute, value in HOST_DEFAULTS:
        setattr(setting, attribute, value)


@paths
@pytest.mark.parametrize("name", ["mean", "upper_bound", "improvement", "sampled_improvement"])
def test_acquisition_functions_have_their_gradients_at_training_points(name, path, botorch_defaults) -> None:
    from botorch.acquisition import (
        LogExpectedImprovement,
        PosteriorMean,
        UpperConfidenceBound,
        qLogExpectedImprovement,
    )
    from botorch.models import SingleTaskGP
    from botorch.sampling import SobolQMCNormalSampler

    x = points()
    y = torch.sin(5 * x[:, :1]) + 0.1 * torch.randn(N, 1, generator=torch.Generator().manual_seed(4)).double()

    def gradient() -> Tensor:
        model: Any = SingleTaskGP(x, y)
        model.likelihood.noise, model.covar_module.lengthscale = 0.05, 0.4
        model.eval()
        best = float(y.mean())
        function: Any = {
            "mean": lambda: PosteriorMean(model),
            "upper_bound": lambda: UpperConfidenceBound(model, beta=2.0),
            "improvement": lambda: LogExpectedImprovement(model, best_f=best),
            "sampled_improvement": lambda: qLogExpectedImprovement(
                model, best_f=best, sampler=SobolQMCNormalSampler(torch.Size([32]), seed=0)
            ),
        }[name]()
        candidates = x.clone().requires_grad_()
        batch = candidates.unsqueeze(-2) if name != "sampled_improvement" else candidates[:6].reshape(2, 3, 3)
        return torch.autograd.grad(function(batch).sum(), candidates)[0]

    assert host_settings.cholesky_max_tries.value() == 6
    expected = gradient()
    with PATHS[path](), collect_reports() as reports:
        found = gradient()
    assert len(reports) > 0
    assert float(expected.norm()) > 0
    assert relative(found, expected) < 1e-4
