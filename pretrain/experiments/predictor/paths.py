"""Sequences of the systems that GP training solves: a regression problem and the hyperparameters along an optimiser.

The optimiser follows the exact gradient, so a path does not depend on the predictor that is later judged on it. The
parameters are GPyTorch's own (a softplus each, all raw values zero at the start, noise at least 1e-4), and so are the
steps that a learning rate makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from gp_rangeformer.lab import datasets
from gp_rangeformer.plugin.autograd import InvQuadLogDet
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.matrices.draws import log_uniform, normal, uniform
from pretrain.matrices.gp_kernel import PROFILES

STATIONARY = ("rbf", "matern12", "matern32", "matern52", "rq")


@dataclass(frozen=True)
class Problem:
    """A regression problem and the correlation of its kernel, ``profile`` of ``PROFILES`` with its ``shape``.

    ``least_noise`` is added to the softplus of the raw noise, as GPyTorch's constraint does.
    """

    name: str
    x: Float[Tensor, "n d"]
    y: Float[Tensor, " n"]
    profile: str
    shape: float = 1.0
    least_noise: float = 1e-4

    @property
    def size(self) -> int:
        return len(self.y)

    def covariance(
        self, raw: Float[Tensor, " q"]
    ) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """K, the noise of every point and y - mean, for q = 3 + d raw parameters: mean, noise, scale, lengths."""
        scaled = self.x / softplus(raw[3:])
        distances = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = softplus(raw[2]) * PROFILES[self.profile](distances, raw.new_tensor(self.shape))
        return kernel, (softplus(raw[1]) + self.least_noise).expand(self.size), self.y - raw[0]


@dataclass(frozen=True)
class Path:
    """Raw hyperparameters, one row per evaluation, in the order in which the optimiser asked for them."""

    problem: Problem
    optimiser: str
    raw: Float[Tensor, "t q"]


def generated(seed: int) -> Problem:
    """n from 200 to 600 standardised inputs in 1 to 12 dimensions, the target a draw of a GP plus noise.

    Few dimensions matter much and many little, as in tables: the true length-scales of the kernel are log-uniform over
    a factor of 30, those of the inputs' covariance over 10. Noise variance log-uniform in 1e-4..0.5. O(n^3).
    """
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(200, 601, (1,), generator=generator))
    d = int(torch.randint(1, 13, (1,), generator=generator))
    profile = STATIONARY[int(torch.randint(len(STATIONARY), (1,), generator=generator))]
    shape = float(log_uniform(0.3, 3.0, (1,), generator))
    x = normal((n, d), generator)
    if float(uniform((1,), generator)) < 0.5:
        x = uniform((n, d), generator)
    mixing = normal((d, d), generator) / math.sqrt(d) * log_uniform(0.1, 1.0, (d,), generator)
    x = x + float(uniform((1,), generator)) * (x @ mixing)
    x = (x - x.mean(0)) / x.std(0)
    lengths = math.sqrt(d) * log_uniform(0.2, 6.0, (d,), generator)
    kernel = PROFILES[profile](torch.cdist(x / lengths, x / lengths), torch.tensor(shape))
    root = torch.linalg.cholesky(kernel + 1e-8 * torch.eye(n))
    noise = float(log_uniform(1e-4, 0.5, (1,), generator))
    y = root @ normal((n,), generator) + math.sqrt(noise) * normal((n,), generator)
    return Problem(f"generated {seed}", x, (y - y.mean()) / y.std(), profile, shape)


def table(name: str, n: int, least_noise: float = 1e-4) -> Problem:
    """A UCI set in float32 with Matern-3/2, for evaluation only.

    :raises DatasetError: as :func:`gp_rangeformer.lab.datasets.load`.
    """
    data = datasets.load(name, n=n, seed=0).to(torch.float32)
    return Problem(name, data.train_x, data.train_y, "matern32", least_noise=least_noise)


def adam_path(problem: Problem, learning_rate: float, steps: int) -> Path:
    """``steps`` evaluations under Adam from GPyTorch's initial values. O(n^3) each."""
    raw = problem.x.new_zeros(3 + problem.x.shape[1]).requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=learning_rate)
    visited = []
    for _ in range(steps):
        visited.append(raw.detach().clone())
        optimiser.zero_grad()
        _loss(problem, raw).backward()
        optimiser.step()
    return Path(problem, f"Adam {learning_rate:.3g}", torch.stack(visited))


def lbfgs_path(problem: Problem, evaluations: int) -> Path:
    """At most ``evaluations`` evaluations under L-BFGS with a strong Wolfe line search, trial points included."""
    raw = problem.x.new_zeros(3 + problem.x.shape[1]).requires_grad_()
    optimiser = torch.optim.LBFGS([raw], max_iter=evaluations, max_eval=evaluations, line_search_fn="strong_wolfe")
    visited: list[Tensor] = []

    def closure() -> Tensor:
        visited.append(raw.detach().clone())
        optimiser.zero_grad()
        loss = _loss(problem, raw)
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return Path(problem, "L-BFGS", torch.stack(visited[:evaluations]))


def _loss(problem: Problem, raw: Tensor) -> Tensor:
    """The negative log marginal likelihood per point, without its constant."""
    kernel, noise, target = problem.covariance(raw)
    system = LinearSystem(kernel.detach(), noise.detach())
    rhs = target[:, None]

    evaluation = Exact().prepare(system).evaluate(rhs.detach())
    quadratic, logdet = InvQuadLogDet.apply(kernel, noise, rhs, evaluation)  # type: ignore[misc]
    return 0.5 * (quadratic.sum() + logdet) / problem.size
