"""The gradient with respect to a kernel matrix, in factors until somebody looks at its entries.

A training step's weight dL/dK = left right' + diag(diagonal) has rank 33 or so. Handed to autograd as this tensor it
passes through the graph like any other: the backward pass of a fused kernel finds the factors and contracts them
without forming n^2 numbers; a hook, another operation on K in between, or ``autograd.grad(loss, K)`` finds a dense
matrix, made when it is first needed. From then on that matrix is the weight: a hook may have changed it in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gp_rangeformer.kernels.contract import DenseWeight, ThinWeight

_SAME = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


class UnformedWeight(torch.Tensor):
    """The symmetric part of ``factors``' matrix, n x n, in their dtype and on their device, without a graph."""

    factors: ThinWeight
    _matrix: list[Tensor]  # none or one, in a list that aliases share

    @staticmethod
    def __new__(cls, factors: ThinWeight) -> UnformedWeight:
        left = factors.left
        n = len(left)
        made = torch.Tensor._make_wrapper_subclass(cls, (n, n), dtype=left.dtype, device=left.device)  # type: ignore[attr-defined]
        made.factors, made._matrix = factors, []
        return made

    def __init__(self, factors: ThinWeight) -> None:
        """Nothing more: ``__new__`` made it."""

    def formed(self) -> Tensor:
        """The matrix as a plain tensor, the same every time. 2 n^2 m flops, n^2 memory."""
        if not self._matrix:
            self._matrix.append(self.factors.symmetric())
        return self._matrix[0]

    def weight(self) -> ThinWeight | DenseWeight:
        """The factors, unless somebody has had the matrix in hand, and may have written to it."""
        return DenseWeight(self._matrix[0]) if self._matrix else self.factors

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*_formed(args), **_formed(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SAME:
            alias = cls(args[0].factors)
            alias._matrix = args[0]._matrix
            return alias
        return func(*_formed(args), **_formed(kwargs or {}))


def _formed(values: Any) -> Any:
    return tree_map_only(UnformedWeight, lambda weight: weight.formed(), values)
