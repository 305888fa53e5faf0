"""What the model is asked for: exact answers for a batch of matrices, and the loss of every loop against them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.rangeformer.rangeformer import RangeFormerOutput

TASKS = ("lambda_max", "logdet", "solve")
_ENOUGH = 1e-5  # relative errors of solves that need not become smaller


@dataclass
class Answers:
    """Float64 truth for b symmetric positive definite matrices."""

    matrices: Float[Tensor, "b n n"]
    rhs: Float[Tensor, "b n m"]
    smallest: Float[Tensor, " b"]  # eigenvalue
    largest: Float[Tensor, " b"]
    logdet: Float[Tensor, " b"]
    solution: Float[Tensor, "b n m"]

    @classmethod
    def of(cls, matrices: Float[Tensor, "b n n"], rhs: Float[Tensor, "b n m"]) -> Answers:
        eigenvalues, vectors = torch.linalg.eigh(matrices)
        eigenvalues = eigenvalues.clamp_min(1e-300)
        solution = vectors @ ((vectors.mT @ rhs) / eigenvalues.unsqueeze(-1))
        return cls(matrices, rhs, eigenvalues[:, 0], eigenvalues[:, -1], eigenvalues.log().sum(-1), solution)


def losses(
    outputs: list[RangeFormerOutput], others: list[RangeFormerOutput], answers: Answers
) -> dict[str, Float[Tensor, "t b"]]:
    """Loss per task, loop and matrix. Each is zero for a perfect answer, scale-free, and of order one to begin with.

    * lambda_max: |log ratio|.
    * logdet: log(1 + 10 |error| per point), so that spectra of condition 1e8 do not drown others.
    * solve: the digits that the relative error in the norm of A has above 1e-5, over 5: its expectation over the choice
      of a preconditioner, of which ``outputs`` have made one (Jacobi's) and ``others`` the other (none).
    """
    n = answers.matrices.shape[-1]
    per_loop: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    for output, other in zip(outputs, others, strict=True):
        per_loop["lambda_max"].append((output.lambda_max / answers.largest).log().abs())
        per_loop["logdet"].append(((output.logdet - answers.logdet).abs() * (10 / n)).log1p())
        assert output.jacobi is not None
        odds = torch.sigmoid(output.jacobi.double())
        per_loop["solve"].append(odds * solve_error(output, answers) + (1 - odds) * solve_error(other, answers))
    return {task: torch.stack(values) for task, values in per_loop.items()}


def solve_error(output: RangeFormerOutput, answers: Answers) -> Float[Tensor, " b"]:
    """Digits above 1e-5 of the relative error in the norm of A, over 5; mean over right-hand sides."""
    assert output.solution is not None
    error = output.solution.double() - answers.solution
    energy = (answers.rhs * answers.solution).sum(-2)
    relative = ((error * (answers.matrices @ error)).sum(-2) / energy).clamp_min(0)
    return (1 + 0.5 * (relative + _ENOUGH**2).log10() / 5).mean(-1)
