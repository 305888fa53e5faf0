"""What a kernel matrix that is not held in one piece knows from its expression, however its products are made."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.bind import bind
from gp_rangeformer.kernels.evaluate import evaluate_arguments, of_points, self_covariance
from gp_rangeformer.kernels.expression import Expression


class ExpressionMatrix:
    """K of ``n`` points; with products and columns a :class:`~gp_rangeformer.system.kernel_matrix.KernelMatrix`.

    :param arguments: as :func:`~gp_rangeformer.kernels.embedding.embed` returns them.
    """

    held_dense = False

    def __init__(self, expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype) -> None:
        self._expression, self._n, self._dtype = expression, n, dtype
        self._arguments = tuple(argument.detach() for argument in arguments)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self._n, self._n))

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._arguments[0].device

    def diagonal(self) -> Float[Tensor, " n"]:
        """One number, n times. O(n)."""
        tiles = bind(self._expression, of_points(self._arguments, slice(0, 1)), 1, self._dtype, 1)
        like = torch.empty(0, dtype=self._dtype, device=self.device)
        return self_covariance(tiles, like).repeat(self._n)

    def to_dense(self, dtype: torch.dtype) -> Float[Tensor, "n n"]:
        """K after all: n^2 memory; in every process, without communication, where several share it."""
        return evaluate_arguments(self._expression, self._arguments, self._n, self._dtype).to(dtype)
