"""Batches of models whose parts share what they like, and how their answers are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import ConstantKernel, Kernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from torch import Tensor

from gp_rangeformer.report import ReportCollection
from tests.plugin.market import KERNELS, data, exact_path, spread_hyperparameters

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
