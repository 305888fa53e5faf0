"""A posterior's covariance that is made only as far as it is asked for: variances alone, or all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from linear_operator.operators import DenseLinearOperator, LinearOperator
from torch import Tensor


class PredictiveCovariance:
    """What is known so far of the covariance of t test points; shared by the operators that stand for it.

    :param variances: makes its diagonal, t.
    :param dense: makes all of it, t x t.
    """

    def __init__(self, variances: Callable[[], Tensor], dense: Callable[[], Tensor], size: int, like: Tensor) -> None:
        self._make_variances, self._make_dense = variances, dense
        self.size, self.dtype, self.device = size, like.dtype, like.device
        self._variances: Tensor | None = None
        self._dense: Tensor | None = None

    def variances(self) -> Tensor:
        if self._variances is None:
            self._variances = self._make_variances() if self._dense is None else self._dense.diagonal()
        return self._variances

    def dense(self) -> Tensor:
        if self._dense is None:
            self._dense = self._make_dense()
        return self._dense

    def of_some(self, index: Tensor) -> PredictiveCovariance:
        """Of some of the points. Variances are made of all of them, once: what they cost is shared."""
        return PredictiveCovariance(
            lambda: self.variances()[index], lambda: self.dense()[index][:, index], len(index), self.variances_like()
        )

    def variances_like(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device)


class PredictiveCovarianceOperator(LinearOperator):
    """The covariance of t test points without a graph. ``diagonal()`` costs no t x t matrix; whatever else GPyTorch
    asks gets the dense one, once.

    :param like: an empty tensor of its dtype and device: what linear_operator sees of it.
    """

    def __init__(self, like: Tensor, *, covariance: PredictiveCovariance) -> None:
        super().__init__(like, covariance=covariance)
        self._covariance = covariance

    @classmethod
    def of(cls, covariance: PredictiveCovariance) -> PredictiveCovarianceOperator:
        return cls(covariance.variances_like(), covariance=covariance)

    @property
    def dtype(self) -> torch.dtype:
        return self._covariance.dtype

    @property
    def device(self) -> torch.device:
        return self._covariance.device

    def _size(self) -> torch.Size:
        return torch.Size((self._covariance.size, self._covariance.size))

    def _transpose_nonbatch(self) -> LinearOperator:
        return self

    def _diagonal(self) -> Tensor:
        return self._covariance.variances()

    def evaluate_kernel(self) -> LinearOperator:
        return DenseLinearOperator(self._covariance.dense())

    def to_dense(self) -> Tensor:
        return self._covariance.dense()

    def _matmul(self, rhs: Tensor) -> Tensor:
        return self._covariance.dense() @ rhs

    def representation(self) -> tuple[Tensor, ...]:
        """Of the dense matrix: what is computed from it stays with it."""
        return self.evaluate_kernel().representation()

    def representation_tree(self) -> Any:
        return self.evaluate_kernel().representation_tree()

    def __reduce__(self) -> Any:
        """What is pickled is the matrix: how it was made stays in this process."""
        return DenseLinearOperator, (self._covariance.dense(),)

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        if not batch_indices and isinstance(row_index, slice) and row_index == col_index:
            index = torch.arange(self._covariance.size, device=self.device)[row_index]
            return PredictiveCovarianceOperator.of(self._covariance.of_some(index))
        return DenseLinearOperator(self._covariance.dense()[(*batch_indices, row_index, col_index)])

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        return self._covariance.dense()[(*batch_indices, row_index, col_index)]
