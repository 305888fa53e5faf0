"""What the model is asked for: exact answers for a batch of matrices, and the loss of every loop against them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.rangeformer.rangeformer import RangeFormerOutput

TASKS = ("lambda_max", "logdet", "solve", "range", "scores")


@dataclass
class Answers:
    """Float64 truth for b symmetric positive definite matrices."""

    matrices: Float[Tensor, "b n n"]
    rhs: Float[Tensor, "b n m"]
    eigenvalues: Float[Tensor, "b n"]  # descending
    solution: Float[Tensor, "b n m"]
    leverage: Float[Tensor, "b n"]  # ridge leverage scores at the eigenvalue after the range, summing to one

    @classmethod
    def of(cls, matrices: Float[Tensor, "b n n"], rhs: Float[Tensor, "b n m"], rank: int) -> Answers:
        eigenvalues, vectors = torch.linalg.eigh(matrices)
        eigenvalues, vectors = eigenvalues.flip(-1).clamp_min(1e-300), vectors.flip(-1)
        solution = vectors @ ((vectors.mT @ rhs) / eigenvalues.unsqueeze(-1))
        ridge = eigenvalues[:, min(rank, matrices.shape[-1] - 1), None]
        leverage = (vectors.square() * (eigenvalues / (eigenvalues + ridge)).unsqueeze(-2)).sum(-1)
        return cls(matrices, rhs, eigenvalues, solution, leverage / leverage.sum(-1, keepdim=True))


def losses(outputs: list[RangeFormerOutput], answers: Answers) -> dict[str, Float[Tensor, "t b"]]:
    """Loss per task, loop and matrix. Each is zero for a perfect answer, scale-free, and of order one to begin with.

    * lambda_max: |log ratio|. logdet: log(1 + |error| per point), so that spectra of condition 1e8 do not drown others.
    * solve: log10 of the relative error in the norm of A, plus 5 (errors below 1e-5 count as 1e-5), over 5.
    * range: log of the trace outside the range over the least possible, mean over ranks r/4, r/2, r.
    * scores: relative entropy to the ridge leverage scores.
    """
    per_loop: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    n = answers.matrices.shape[-1]
    total = answers.eigenvalues.sum(-1)
    energy = (answers.rhs * answers.solution).sum(-2)
    logdet = answers.eigenvalues.log().sum(-1)
    for output in outputs:
        per_loop["lambda_max"].append((output.lambda_max / answers.eigenvalues[:, 0]).log().abs())
        per_loop["logdet"].append(((output.logdet - logdet) / n).abs().log1p())
        assert output.solution is not None
        error = output.solution.double() - answers.solution
        relative = ((error * (answers.matrices @ error)).sum(-2) / energy).clamp_min(0)
        per_loop["solve"].append((0.5 * (relative + 1e-10).log10().mean(-1) + 5) / 5)
        captured = (output.basis.double() * output.image.double()).sum(-2).cumsum(-1)
        rank = output.basis.shape[-1]
        excess = []
        for k in (rank // 4, rank // 2, rank):
            if k < n:
                least = answers.eigenvalues[:, k:].sum(-1)
                outside = total - captured[:, k - 1]
                excess.append(((outside.clamp_min(0) + 1e-6 * total) / (least + 1e-6 * total)).log())
        per_loop["range"].append(torch.stack(excess).mean(0) if excess else torch.zeros_like(total))
        cross = answers.leverage * (answers.leverage / (output.scores.double() + 1e-12)).log()
        per_loop["scores"].append(cross.sum(-1))
    return {task: torch.stack(values) for task, values in per_loop.items()}
