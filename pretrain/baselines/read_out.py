"""Plain linear read-outs, shared by the baselines: what a token says about A, put back into the units of A."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

SCALARS = ("trace", "lambda_max", "logdet")
SOLVE = "solve"
TASKS = (*SCALARS, SOLVE)


class ReadOut(nn.Module):
    """One linear map of the mean token per scalar task, and one of every row's token for ``solve``.

    The maps answer for A / scale and b sqrt(n) / |b|: tr A / n, lambda_max, log|det A| / n, and x. Here they are
    converted, so that the answers are homogeneous in A and b whatever was learned.

    :param dim: width of a token.
    :param tasks: names from ``TASKS``.
    :raises ValueError: if there is no task, one twice, or an unknown one.
    """

    def __init__(self, dim: int, tasks: Sequence[str]) -> None:
        super().__init__()
        if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= set(TASKS):
            raise ValueError(f"tasks must be different names from {', '.join(TASKS)}, got {tuple(tasks)}")
        self.maps = nn.ModuleDict({task: nn.Linear(dim, 1) for task in tasks})

    def forward(
        self,
        tokens: Float[Tensor, "b t d"],
        rows: Float[Tensor, "b n d"],
        scale: Float[Tensor, " b"],
        rhs_length: Float[Tensor, " b"] | None,
    ) -> dict[str, Tensor]:
        """One answer per task, in the units of A: shape b for the scalars, b x n for ``solve``.

        :param tokens: all tokens, for the mean.
        :param rows: the token of each row, from which ``solve`` is read.
        :param scale: what A was divided by.
        :param rhs_length: |b|; needed for ``solve`` alone.
        """
        size = rows.shape[-2]
        answers = {}
        for task, read in self.maps.items():
            value = read(rows if task == SOLVE else tokens.mean(-2)).squeeze(-1)
            if task == "trace":
                answers[task] = size * scale * value
            elif task == "lambda_max":
                answers[task] = scale * value
            elif task == "logdet":
                answers[task] = size * (value + scale.log())
            else:
                assert rhs_length is not None
                answers[task] = value * (rhs_length / scale / size**0.5).unsqueeze(-1)
        return answers


def unit_rhs(
    rhs: Float[Tensor, "b n"] | None, tasks: Sequence[str]
) -> tuple[Float[Tensor, "b n"] | None, Float[Tensor, " b"] | None]:
    """(b sqrt(n) / |b|, |b|), a zero b kept as it is; (None, None) without a right-hand side.

    :raises ValueError: if ``solve`` is among the tasks and there is no right-hand side, or the reverse.
    """
    if (SOLVE in tasks) != (rhs is not None):
        raise ValueError(f"a right-hand side belongs to the task solve and to no other; tasks are {tuple(tasks)}")
    if rhs is None:
        return None, None
    length = rhs.norm(dim=-1)
    divisor = length.where(length > 0, length.new_ones(())).unsqueeze(-1)
    return rhs * (rhs.shape[-1] ** 0.5) / divisor, length
