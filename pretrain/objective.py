"""What the model is asked for: exact answers for a batch of matrices, and the loss of every loop against them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.rangeformer.rangeformer import RangeFormerOutput

TASKS = ("lambda_max", "logdet")


@dataclass
class Answers:
    """Float64 truth for b symmetric positive definite matrices."""

    matrices: Float[Tensor, "b n n"]
    smallest: Float[Tensor, " b"]  # eigenvalue
    largest: Float[Tensor, " b"]
    logdet: Float[Tensor, " b"]

    @classmethod
    def of(cls, matrices: Float[Tensor, "b n n"]) -> Answers:
        eigenvalues = torch.linalg.eigvalsh(matrices).clamp_min(1e-300)
        return cls(matrices, eigenvalues[:, 0], eigenvalues[:, -1], eigenvalues.log().sum(-1))


def losses(outputs: list[RangeFormerOutput], answers: Answers) -> dict[str, Float[Tensor, "t b"]]:
    """Loss per task, loop and matrix. Each is zero for a perfect answer, scale-free, and of order one to begin with.

    * lambda_max: |log ratio|.
    * logdet: log(1 + 10 |error| per point), so that spectra of condition 1e8 do not drown others.

    Solves are Galerkin's in the range, which has no weights: nothing of them is learned.
    """
    n = answers.matrices.shape[-1]
    return {
        "lambda_max": torch.stack([(output.lambda_max / answers.largest).log().abs() for output in outputs]),
        "logdet": torch.stack([((output.logdet - answers.logdet).abs() * (10 / n)).log1p() for output in outputs]),
    }
