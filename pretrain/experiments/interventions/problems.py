"""Batches of matrices with their exact answers, and how far a prediction is from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from pretrain.baselines.read_out import SCALARS, SOLVE
from pretrain.matrices import GAUSSIAN, HELD_OUT, STRUCTURED, Mixture

Distribution = Literal["gaussian", "structured", "identity", "diagonal", "toeplitz"]
DISTRIBUTIONS: tuple[Distribution, ...] = ("gaussian", "structured", "identity", "diagonal", "toeplitz")
_FAMILIES = {family.name: family for family in HELD_OUT}
_MIXTURE = Mixture(STRUCTURED)
_LARGEST_CONDITION = 1e4
_RIDGE = 0.1


@dataclass
class Problems:
    """Matrices of one size in float32, as the models see them, and answers in float64."""

    matrices: Float32[Tensor, "b n n"]
    scalars: dict[str, Float64[Tensor, " b"]]  # NaN: not asked of this matrix
    typical: Float64[Tensor, " b"]  # root mean square eigenvalue
    rhs: Float32[Tensor, "b n"] | None = None
    solution: Float64[Tensor, "b n"] | None = None

    @classmethod
    def of_scalars(cls, matrices: Float64[Tensor, "b n n"]) -> Problems:
        """With trace, lambda_max and log|det|, from eigenvalues: O(n^3)."""
        eigenvalues = torch.linalg.eigvalsh(matrices)
        scalars = {
            "trace": eigenvalues.sum(-1),
            "lambda_max": eigenvalues[:, -1],
            "logdet": eigenvalues.abs().log().sum(-1),
        }
        return cls(matrices.float(), scalars, eigenvalues.square().mean(-1).sqrt())

    @classmethod
    def of_solve(cls, matrices: Float64[Tensor, "b n n"], generator: torch.Generator) -> Problems:
        """With b ~ N(0, I) and x = A^-1 b: O(n^3)."""
        rhs = torch.randn(matrices.shape[:2], generator=generator, dtype=torch.float64).float()
        typical = torch.linalg.matrix_norm(matrices) / matrices.shape[-1] ** 0.5
        return cls(matrices.float(), {}, typical, rhs, torch.linalg.solve(matrices, rhs.double()))

    def split(self, size: int) -> list[Problems]:
        """In the same order, at most ``size`` matrices each."""
        pieces = []
        for start in range(0, len(self.matrices), size):
            part = slice(start, start + size)
            pieces.append(
                replace(
                    self,
                    matrices=self.matrices[part],
                    scalars={task: value[part] for task, value in self.scalars.items()},
                    typical=self.typical[part],
                    rhs=None if self.rhs is None else self.rhs[part],
                    solution=None if self.solution is None else self.solution[part],
                )
            )
        return pieces


def draw(
    distribution: Distribution, tasks: tuple[str, ...], count: int, size: int, generator: torch.Generator
) -> Problems:
    """``count`` matrices for every task; scalar tasks or solve. Gaussian scalars come from 2 ``count`` matrices:
    indefinite ones for trace and lambda_max, then positive definite ones for logdet.
    """
    if tasks == (SOLVE,):
        matrices = (
            _gram(count, size, generator)
            if distribution == "gaussian"
            else _sample(distribution, count, size, generator)
        )
        return Problems.of_solve(_ridged(matrices), generator)
    if distribution != "gaussian":
        return Problems.of_scalars(_sample(distribution, count, size, generator))
    problems = Problems.of_scalars(torch.cat([GAUSSIAN.sample(count, size, generator), _gram(count, size, generator)]))
    definite = torch.arange(2 * count) >= count
    for task in SCALARS:
        asked = definite if task == "logdet" else ~definite
        problems.scalars[task] = problems.scalars[task].where(asked, torch.nan)
    return problems


def errors(task: str, prediction: Tensor, problems: Problems) -> Float64[Tensor, " k"]:
    """Of the k matrices that were asked: |error| / max(|truth|, root mean square eigenvalue) for trace and lambda_max,
    |error| / n for logdet, |b - A x| / |b| for solve.

    The floor matters for the trace of indefinite matrices alone, whose relative error has no mean: the truth may be 0.
    """
    if task == SOLVE:
        assert problems.rhs is not None
        rhs = problems.rhs.double()
        image = (problems.matrices.double() @ prediction.double().unsqueeze(-1)).squeeze(-1)
        return (rhs - image).norm(dim=-1) / rhs.norm(dim=-1)
    asked = ~problems.scalars[task].isnan()
    truth = problems.scalars[task][asked]
    difference = (prediction.double()[asked] - truth).abs()
    if task == "logdet":
        return difference / problems.matrices.shape[-1]
    return difference / torch.maximum(truth.abs(), problems.typical[asked])


def loss(prediction: dict[str, Tensor], problems: Problems) -> Float[Tensor, ""]:
    """The sum over tasks of the mean :func:`errors`; for solve |x - A^-1 b| / |A^-1 b| instead of the residual."""
    terms = []
    for task, value in prediction.items():
        if task == SOLVE:
            assert problems.solution is not None
            terms.append(((value - problems.solution).norm(dim=-1) / problems.solution.norm(dim=-1)).mean())
        else:
            terms.append(errors(task, value, problems).mean())
    return torch.stack(terms).sum()


def _sample(distribution: Distribution, count: int, size: int, generator: torch.Generator) -> Tensor:
    if distribution == "structured":
        return _MIXTURE.sample(count, size, generator)[0]
    return _FAMILIES[distribution].sample(count, size, generator)


def _gram(count: int, size: int, generator: torch.Generator) -> Tensor:
    """G G' / n + 0.1 I, the positive definite counterpart of Gaussian matrices; condition about 40."""
    root = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return root @ root.mT / size + _RIDGE * torch.eye(size, dtype=torch.float64)


def _ridged(matrices: Tensor) -> Tensor:
    """A + s I, s = |A|_inf / (1e4 - 1): lambda_max <= |A|_inf, so the condition number is at most 1e4."""
    shift = matrices.abs().sum(-1).amax(-1) / (_LARGEST_CONDITION - 1)
    return matrices + torch.diag_embed(shift.unsqueeze(-1).expand(matrices.shape[:2]))
