"""PyTorch's modes around a call: transforms, batched gradients, autocast, compilation, threads; determinism."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from gp_rangeformer import clear_memory, collect_reports, settings
from gp_rangeformer.system.reason import Reason
from tests.plugin.market import Problem, build, exact_path, rangeformer_path, relative

N = 110
NAME = "problem.covar_module.base_kernel.raw_lengthscale"


class Loss(torch.nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem, self.asked = problem.model, problem

    def forward(self) -> Tensor:
        return self.asked.loss()


def of_lengthscale(kernel: str = "ard") -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The loss as a function of one raw parameter, and where it stands."""
    problem = build(kernel, n=N)
    loss = Loss(problem)
    start = dict(loss.named_parameters())[NAME].detach().clone()
    return lambda raw: functional_call(loss, {NAME: raw}, ()), start


def dual(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(at, torch.ones_like(at)))).tangent


def batched(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    many = torch.tensor([1.0, -2.0, 0.5], dtype=at.dtype)
    return torch.autograd.grad(function(at), at, many, is_grads_batched=True)[0]


FIRST: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: grad(f)(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones((), dtype=x.dtype))[0],
    "dual_numbers": dual,
    "functional_jacobian": lambda f, x: functional.jacobian(f, x, vectorize=True),
    "functional_jvp": lambda f, x: functional.jvp(f, x, torch.ones_like(x))[1],
    "is_grads_batched": batched,
}
SECOND: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "hessian": lambda f, x: hessian(f)(x),
    "forward_over_reverse": lambda f, x: jacfwd(grad(f))(x),
    "reverse_over_reverse": lambda f, x: jacrev(grad(f))(x),
    "functional_hessian": lambda f, x: functional.hessian(f, x),
    "functional_hessian_vectorized": lambda f, x: functional.hessian(f, x, vectorize=True),
    "functional_hessian_forward": lambda f, x: functional.hessian(
        f, x, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "functional_hvp": lambda f, x: functional.hvp(f, x, torch.ones_like(x))[1],
    "functional_vhp": lambda f, x: functional.vhp(f, x, torch.ones_like(x))[1],
}
PATHS = {"exact": exact_path, "rangeformer": rangeformer_path}
paths = pytest.mark.parametrize("path", PATHS)
modes_warn = pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning", "ignore:Converting a tensor:UserWarning"
)


@modes_warn
@paths
@pytest.mark.parametrize("name", sorted(FIRST | SECOND))
def test_transforms_of_a_loss_give_what_they_give_without_the_flag(name, path) -> None:
    transform = (FIRST | SECOND)[name]
    expected = transform(*of_lengthscale())
    with PATHS[path]():
        found = transform(*of_lengthscale())
    assert found.shape == expected.shape
    assert float(expected.norm()) > 0
    # A first derivative outside the transforms is the probes'.
    assert relative(found, expected) < 1e-8


@pytest.mark.parametrize("name", sorted(SECOND))
def test_second_derivatives_are_those_of_differences(name) -> None:
    function, at = of_lengthscale()
    rows = []
    for direction in 1e-5 * torch.eye(at.numel(), dtype=at.dtype):
        step = direction.reshape(at.shape)
        rows.append((grad(function)(at + step) - grad(function)(at - step)).reshape(-1) / 2e-5)
    expected = torch.stack(rows)
    with exact_path(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *arguments, **options: None)
        found = SECOND[name](*of_lengthscale()).reshape(-1)
    assert relative(found, expected.sum(0) if found.numel() == at.numel() else expected.reshape(-1)) < 1e-6


def test_a_transformed_call_says_why_gpytorch_answered() -> None:
    function, at = of_lengthscale()
    with exact_path() as reports:
        grad(function)(at)
        function(at)
    assert [(report.solver, report.reason) for report in reports] == [
        ("gpytorch", Reason.TRANSFORM),
        ("exact", Reason.EXACT_SMALL),
    ]


@modes_warn
@paths
def test_predictive_variances_have_a_vectorized_jacobian(path) -> None:
    problem = build(n=N)

    def variances(x: Tensor) -> Tensor:
        return problem.predict(x).variance

    expected = functional.jacobian(variances, problem.test_x, vectorize=True)
    with PATHS[path]():
        found = functional.jacobian(variances, problem.test_x, vectorize=True)
    assert relative(found, expected) < 1e-5


@paths
def test_vmap_over_targets_is_gpytorchs(path) -> None:
    problem = build("rational_quadratic", n=N)
    targets = torch.stack([problem.y, -problem.y, 2 * problem.y])

    def value(y: Tensor) -> Tensor:
        prior = problem.likelihood(problem.model(problem.x))
        return prior.lazy_covariance_matrix.inv_quad_logdet(y.unsqueeze(-1), logdet=True)[0]

    with without_warnings():
        expected = vmap(value)(targets)
        with PATHS[path]():
            found = vmap(value)(targets)
    assert relative(found, expected) < 1e-9


@contextlib.contextmanager
def without_warnings() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("whole", [True, False], ids=["forward_and_backward", "forward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", ["matern32", "sum", "spectral_mixture"])
@paths
def test_autocast_changes_no_bit_of_a_step(path, kernel, dtype, whole) -> None:
    tolerance: Any = {} if path == "exact" else {"tolerance": 1e-3}

    def step(cast: bool) -> tuple[float, Tensor]:
        clear_memory()
        problem = build(kernel, n=N, dtype=dtype)
        problem.likelihood.noise = 0.2
        with PATHS[path](**tolerance), contextlib.ExitStack() as stack:
            if cast:
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            loss = problem.loss()
            if not whole:
                stack.close()
            loss.backward()
        return float(loss.detach()), torch.cat([p.grad.reshape(-1) for p in problem.model.parameters()])

    expected, found = step(False), step(True)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])


@paths
def test_autocast_changes_no_bit_of_a_float64_prediction(path) -> None:
    """In float32 GPyTorch's own products with the answer are cast, and its variances fail: not the flag's doing."""

    def prediction(cast: bool) -> tuple[Tensor, Tensor]:
        problem = build(n=N)
        with PATHS[path](), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            found = problem.predict()
        return found.mean.detach(), found.variance.detach()

    for found, expected in zip(prediction(True), prediction(False), strict=True):
        assert torch.equal(found, expected)


@paths
@pytest.mark.usefixtures("predicts_small_systems")
def test_autocast_leaves_the_cached_mean_solve_alone(path) -> None:
    """The solve behind float32 predictions keeps its precision; the product with it is GPyTorch's, in bfloat16."""
    tolerance: Any = {} if path == "exact" else {"tolerance": 1e-3}
    caches = []
    for cast in (False, True):
        clear_memory()
        problem = build(n=N, dtype=torch.float32)
        problem.likelihood.noise = 0.2
        with PATHS[path](**tolerance), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            problem.predict().mean  # noqa: B018
        caches.append(problem.model.prediction_strategy.mean_cache)
    assert caches[1].dtype == torch.float32
    assert torch.equal(*caches)


def test_a_compiled_loss_is_the_solvers_to_the_last_bit() -> None:
    """torch.compile breaks its graph where the flag answers, and must not trace what is behind it."""

    def steps(compiled: bool) -> list[Tensor]:
        clear_memory()
        problem = build(n=N)

        run = torch.compile(problem.loss, backend="eager") if compiled else problem.loss
        losses = []
        with rangeformer_path() as reports:
            for _ in range(2):
                loss = run()
                loss.backward()
                losses.append(loss.detach())
        assert {report.solver for report in reports} == {"rangeformer"}
        return [*losses, *(parameter.grad for parameter in problem.model.parameters())]

    expected = steps(False)
    with without_warnings():
        found = steps(True)
    torch.compiler.reset()
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)


# In a process of its own: the checks of shapes that the tests switch on are not made for threads.
IN_THREADS = """
import threading, warnings
warnings.simplefilter("ignore")
import torch
from gp_rangeformer import clear_memory
from tests.plugin.market import build, rangeformer_path

def train(kernel):
    problem, found = build(kernel, n=110), []
    for _ in range(5):
        found.append(problem.loss_and_gradient()[0])
        with torch.no_grad():
            for parameter in problem.model.parameters():
                parameter -= 0.01 * parameter.grad
    return found

torch.set_num_threads(1)
kernels, answers = ["matern32", "rbf", "sum"], {}
with rangeformer_path() as reports:
    expected = {kernel: train(kernel) for kernel in kernels}
    clear_memory()
    threads = [threading.Thread(target=lambda k=k: answers.__setitem__(k, train(k))) for k in kernels]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
assert len(reports) == 30 and {report.solver for report in reports} == {"rangeformer"}
print(max(abs(a - b) for k in kernels for a, b in zip(answers[k], expected[k], strict=True)))
"""


def test_threads_with_models_of_their_own_get_their_own_answers() -> None:
    """Settings are shared, as linear_operator's own are; memories and answers are not."""
    run = subprocess.run([sys.executable, "-c", IN_THREADS], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1e-9


def four_losses(problem: Problem) -> list[Tensor]:
    return [torch.cat([x.reshape(-1) for x in one_step(problem)]) for _ in range(4)]


def one_step(problem: Problem) -> list[Tensor]:
    problem.model.zero_grad()
    loss = problem.loss()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in problem.model.parameters())]


@pytest.mark.parametrize("logdet", ["learned", "lanczos"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_deterministic_calls_have_the_same_bits_whatever_came_before(dtype, logdet) -> None:
    problem = build(n=300, dtype=dtype)
    problem.likelihood.noise = 0.2
    with settings.rangeformer(), settings.min_size(1), settings.solver(logdet=logdet), collect_reports() as reports:
        with settings.deterministic():
            alone = four_losses(problem)
        remembered = four_losses(problem)
        with settings.deterministic():
            after = four_losses(problem)
        clear_memory()
        again = four_losses(problem)
    assert {report.solver for report in reports} == {"rangeformer"}
    for found in (*alone, *after):
        assert torch.equal(found, alone[0])
    # Off: a step depends on those before it, and the same sequence gives the same bits.
    assert not torch.equal(remembered[1], remembered[0])
    for own, other in zip(again, remembered, strict=True):
        assert torch.equal(own, other)


class Checkpointed(gpytorch.kernels.Kernel):
    """Its base kernel is evaluated again in the backward pass, when no other kernel's code stands around it."""

    def __init__(self, base: gpytorch.kernels.Kernel) -> None:
        super().__init__()
        self.base = base

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        def evaluate(first: Tensor, second: Tensor) -> Tensor:
            result = self.base(first, second, diag=diag)
            return result if isinstance(result, Tensor) else result.to_dense()

        return torch.utils.checkpoint.checkpoint(evaluate, x1, x2, use_reentrant=False)  # type: ignore[return-value]


def test_a_kernel_with_a_checkpoint_inside_has_gpytorchs_gradient() -> None:
    x = torch.rand(150, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.sin(6 * x.sum(1))

    def gradient(flag: bool) -> Tensor:
        kernel = Checkpointed(gpytorch.kernels.MaternKernel(1.5)).double()
        with settings.rangeformer(flag):
            lazy: Any = kernel(x)
            covariance = lazy.add_diagonal(torch.full((150,), 0.1, dtype=torch.float64))
            (-MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)).backward()
        found = kernel.base.raw_lengthscale.grad
        assert isinstance(found, Tensor)
        return found

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-8, atol=1e-8)
