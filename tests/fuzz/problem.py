"""A model that moves: kernel, noise, inputs and targets, and the ways in which GPyTorch is asked about them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import gpytorch
import torch
from torch import Tensor

from tests.fuzz.draws import INPUTS, TARGETS, Dice, Given, draw_hyperparameters, draw_kernel, draw_noise, given_matrix


class _Model(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, kernel: gpytorch.kernels.Kernel) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module: Any = gpytorch.means.ZeroMean()
        self.covar_module = kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@dataclass
class Problem:
    """``model`` asks by ExactMarginalLogLikelihood; without one a MultivariateNormal of K + D is asked, whose noise may
    differ from point to point."""

    dtype: torch.dtype
    name: str
    kernel: Any  # a gpytorch kernel
    inputs: str
    d: int
    noise: torch.nn.Parameter
    model: Any = None
    likelihood: Any = None
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    targets: str = ""

    @classmethod
    def draw(cls, dice: Dice, dtype: torch.dtype, n: int) -> Problem:
        given = dice.chance(0.12)
        d = dice.pick(1, 1, 2, 3, 8)
        level = draw_noise(dice)
        if given:
            kind, matrix = given_matrix(dice, n, level)
            name, kernel = f"given {kind}", gpytorch.kernels.ScaleKernel(Given(matrix))
            kernel.outputscale = 1.0
        else:
            name, kernel = draw_kernel(dice, d)
        kernel = kernel.to(dtype)
        if not given:
            draw_hyperparameters(dice, kernel)
        inputs = "rows" if given else dice.pick(*INPUTS)
        by_model = dice.chance(0.5)
        count = 1 if by_model or dice.chance(0.5) else n
        spread = torch.exp(dice.between(0, 2) * dice.normal(count)) if count > 1 else torch.ones(1)
        noise = torch.nn.Parameter((level * spread.double()).clamp_min(level if given else 1e-7).to(dtype))
        problem = cls(dtype, name, kernel, inputs, d, noise)
        problem.resize(dice, n)
        if by_model:
            constraint = gpytorch.constraints.GreaterThan(1e-9)
            problem.likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=constraint).to(dtype)
            problem.likelihood.noise = noise.detach()
            problem.model = _Model(problem.x, problem.y, problem.likelihood, kernel).train()
        return problem

    @property
    def diagonal(self) -> Tensor:
        """The noise of every point, as it is evaluated."""
        noise = self.likelihood.noise if self.model is not None else self.noise
        return noise.detach().expand(len(self.x)).contiguous()

    def parameters(self) -> list[Tensor]:
        noise = self.likelihood.raw_noise if self.model is not None else self.noise
        return [*self.kernel.parameters(), noise]

    def resize(self, dice: Dice, n: int) -> None:
        """New inputs and targets."""
        if self.inputs == "rows":
            x = torch.arange(n, dtype=torch.float64).unsqueeze(-1)
        else:
            x = INPUTS[self.inputs](dice, n, self.d)
        self.x = x.to(self.dtype)
        if self.noise.numel() not in (1, n):
            self.noise = torch.nn.Parameter(self.noise.detach().repeat(-(-n // self.noise.numel()))[:n].clone())
        self.retarget(dice)

    def retarget(self, dice: Dice) -> None:
        self.targets = dice.pick("smooth", "smooth", "smooth", *TARGETS)
        self.y = TARGETS[self.targets](dice, self.x.double()).to(self.dtype)
        self._tell_model()

    def _tell_model(self) -> None:
        if self.model is not None:
            self.model.set_train_data(self.x, self.y, strict=False)

    @torch.no_grad()
    def drift(self, dice: Dice, step: float) -> None:
        """Every raw hyperparameter moves a little. A given matrix keeps its proportion to the noise."""
        if self.inputs == "rows":
            return
        for parameter in self.parameters():
            if parameter is self.noise:
                parameter *= torch.exp(step * dice.normal(*parameter.shape)).to(self.dtype)
            else:
                parameter += step * dice.normal(*parameter.shape).to(self.dtype)

    def jump(self, dice: Dice) -> None:
        """New hyperparameters and a new level of the noise."""
        if self.inputs == "rows":
            return
        draw_hyperparameters(dice, self.kernel)
        level = draw_noise(dice)
        if self.model is not None:
            self.likelihood.noise = level
        else:
            self.noise.data = (self.noise.data * (level / float(self.noise.data.median()))).clamp_min(1e-7)

    def evaluated_kernel(self) -> Tensor:
        """A copy of K as the flag evaluates it now, in the caller's grad mode: GPyTorch's distances differ with it."""
        return self.kernel(self.x).evaluate_kernel().to_dense().detach().to(torch.float64, copy=True)

    def log_prob(self) -> tuple[Tensor, Tensor | None]:
        """log p(y) in nats by the route of this problem, and K where the route evaluates one that can be copied."""
        if self.model is not None:
            mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self.model)
            return mll(self.model(self.x), self.y) * len(self.x), None
        lazy = self.kernel(self.x).evaluate_kernel()
        kernel = lazy.to_dense().detach().to(torch.float64, copy=True)
        normal = gpytorch.distributions.MultivariateNormal(torch.zeros_like(self.y), lazy.add_diagonal(self.noise))
        return normal.log_prob(self.y), kernel

    def solve(self, rhs: Tensor) -> Tensor:
        return self.kernel(self.x).evaluate_kernel().add_diagonal(self.diagonal).solve(rhs)

    def in_float64(self) -> Problem:
        """The same values in float64, with parameters of its own."""
        other = copy.deepcopy(self)
        other.dtype = torch.float64
        other.kernel.double()
        other.noise = torch.nn.Parameter(other.noise.detach().double())
        if other.model is not None:
            other.model.double()
            other.likelihood.double()
        other.x, other.y = other.x.double(), other.y.double()
        other._tell_model()
        return other

    def differentiable(self) -> tuple[Tensor, Tensor]:
        """K and the diagonal in the graph of the parameters, by GPyTorch's own code where the flag is off."""
        noise = self.likelihood.noise if self.model is not None else self.noise
        lazy = self.kernel(self.x).evaluate_kernel()
        return lazy.to_dense(), noise.expand(len(self.x))
