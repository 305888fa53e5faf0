"""Systems of one batch, and the truth about them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.solvers.exact_batch import BatchEvaluation, evaluate_batch
from gp_rangeformer.system.answers import Evaluation
from gp_rangeformer.system.linear_system import LinearSystem
from tests.system.systems import kernel_matrix, points, targets

DTYPES = [torch.float32, torch.float64]

TOLERANCE = 0.01


class Batch(NamedTuple):
    kernel: Tensor
    noise: Tensor
    rhs: Tensor

    def evaluate(self, tolerance: float = TOLERANCE, with_logdet: bool = True, **options) -> BatchEvaluation | None:
        return evaluate_batch(*self, tolerance, with_logdet, **options)

    def answered(self, *arguments, **options) -> BatchEvaluation:
        found = self.evaluate(*arguments, **options)
        assert found is not None
        return found

    def systems(self) -> list[LinearSystem]:
        return [LinearSystem(*element) for element in zip(self.kernel, self.noise, strict=True)]

    def one_by_one(self, tolerance: float = TOLERANCE, with_logdet: bool = True) -> list[Evaluation]:
        solver = Exact(tolerance)
        return [
            solver.prepare(system).evaluate(rhs, with_logdet)
            for system, rhs in zip(self.systems(), self.rhs, strict=True)
        ]


def batch(
    n: int = 60,
    m: int = 1,
    dtype: torch.dtype = torch.float64,
    noise: float = 0.1,
    names: tuple[str, ...] = ("matern32", "rbf", "matern12"),
) -> Batch:
    """Systems of unlike kernels, scales and noises."""
    kernels, noises, sides = [], [], []
    for number, name in enumerate(names):
        scale = 2.0**number
        kernels.append(scale * kernel_matrix(points(n, 2, seed=number), name))
        noises.append(noise * scale * torch.linspace(1, 3, n, dtype=torch.float64))
        sides.append(targets(n, m, seed=number))
    return Batch(*(torch.stack(parts).to(dtype) for parts in (kernels, noises, sides)))


class Truth(NamedTuple):
    inv_quad: Tensor
    logdet: Tensor
    solutions: Tensor


def truth(given: Batch) -> Truth:
    """Of the very entries, in float64, refined once."""
    kernel, noise, rhs = (part.double() for part in given)
    dense = kernel + noise.diag_embed()
    factor = torch.linalg.cholesky(dense)
    solutions = torch.cholesky_solve(rhs, factor)
    solutions = solutions + torch.cholesky_solve(rhs - dense @ solutions, factor)
    return Truth((rhs * solutions).sum(-2), 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1), solutions)


def rounding(given: Batch, factorised_in: torch.dtype | None = None) -> float:
    """What a relative rounding in every entry may do to a solution: condition times sqrt(n) eps."""
    kernel, noise = given.kernel.double(), given.noise.double()
    dense = kernel + noise.diag_embed()
    condition = float(torch.linalg.cond(dense).max())
    eps = max(torch.finfo(factorised_in or given.kernel.dtype).eps, torch.finfo(torch.float64).eps)
    return kernel.shape[-1] ** 0.5 * eps * condition
