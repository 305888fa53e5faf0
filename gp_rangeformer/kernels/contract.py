"""The gradient of sum_ij W_ij K_ij with respect to the kernel's arguments, with no n x n temporary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.bind import bind
from gp_rangeformer.kernels.conditional_weight import ConditionalWeight
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.gpu.streamed import streamed
from gp_rangeformer.kernels.matrices.share import ALONE, Share
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.tiles import Block, tile_size, upper_blocks


@dataclass(frozen=True)
class ThinWeight:
    """W = left right' + diag(diagonal) + conditional, never formed. 2 n^2 m flops when contracted."""

    left: Float[Tensor, "n m"]
    right: Float[Tensor, "n m"]
    diagonal: Float[Tensor, " n"] | None = None
    conditional: ConditionalWeight | None = None

    def symmetric(self) -> Float[Tensor, "n n"]:
        """The symmetric part of W, formed: all that matters where K is symmetric. 4 n^2 m flops, one n x n matrix."""
        weight = torch.cat([0.5 * self.left, self.right], dim=1) @ torch.cat([self.right, 0.5 * self.left], dim=1).mT
        if self.diagonal is not None:
            weight.diagonal().add_(self.diagonal)
        if self.conditional is not None:
            weight.add_(self.conditional.formed())
        return weight

    def own_diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of W. O(n m)."""
        product = (self.left * self.right).sum(-1)
        product = product if self.diagonal is None else product + self.diagonal
        return product if self.conditional is None else product + self.conditional.own_diagonal()


@dataclass(frozen=True)
class DenseWeight:
    """W as it is."""

    value: Float[Tensor, "n n"]


def contract(
    expression: Expression,
    arguments: tuple[Tensor, ...],
    weight: ThinWeight | DenseWeight,
    dtype: torch.dtype,
    share: Share = ALONE,
) -> tuple[Tensor, ...]:
    """d sum(W * K) for every one of ``arguments``, in its shape and dtype.

    K is symmetric whatever W is: only W + W' matters, and half of the tiles. Their values are recomputed, in ``dtype``
    (K's); per tile the sums over its rows and columns are kept, in float64. Memory: a few tiles, O(n (m + D)). A thin
    weight of a streamed kernel (:mod:`~gp_rangeformer.kernels.gpu.streamed`) needs no tile in memory.

    :param arguments: as :func:`~gp_rangeformer.kernels.embedding.embed` returns them.
    :param share: the tiles (rows of a streamed kernel) that are this process's; the sums over them are added up in
        float64.
    """
    if isinstance(weight, ThinWeight) and weight.conditional is not None:
        return _with_conditional(expression, arguments, weight, weight.conditional, dtype, share)
    n = len(weight.value if isinstance(weight, DenseWeight) else weight.left)
    thin_on_device = isinstance(weight, ThinWeight) and arguments[0].device.type != "cpu"
    stream = streamed(expression, arguments, dtype) if thin_on_device else None
    if stream is not None and isinstance(weight, ThinWeight):
        parts = stream.contract(weight.left, weight.right, weight.diagonal, share.rows(n))
        return _as_arguments([share.sum(part) for part in parts], arguments)
    factors = _factors(weight, dtype)
    size = min(tile_size(arguments[0].device, compiled=library_on(arguments[0].device) is not None), n)
    tiles = bind(expression, arguments, n, dtype, size)
    storage = arguments[0].new_empty(size * size, dtype=dtype)
    for block in share.blocks(upper_blocks(n, size)):
        tiles.pull(block, factors.tile(block, storage))
    return _as_arguments([share.sum(gradient) for gradient in tiles.gradients()], arguments)


def _with_conditional(
    expression: Expression,
    arguments: tuple[Tensor, ...],
    weight: ThinWeight,
    conditional: ConditionalWeight,
    dtype: torch.dtype,
    share: Share,
) -> tuple[Tensor, ...]:
    """The conditional part in every process, the rest as for any other weight."""
    found = conditional.contract(expression, arguments, dtype)
    if found is None:
        return contract(expression, arguments, DenseWeight(weight.symmetric()), dtype, share)
    if weight.left.shape[1] or weight.diagonal is not None:
        rest = contract(expression, arguments, replace(weight, conditional=None), dtype, share)
        found = [one + other for one, other in zip(found, rest, strict=True)]
    return _as_arguments(found, arguments)


def _as_arguments(gradients: list[Tensor], arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    pairs = zip(gradients, arguments, strict=True)
    return tuple(gradient.to(argument.dtype).reshape(argument.shape) for gradient, argument in pairs)


@dataclass(frozen=True)
class _ThinTiles:
    """Tiles of W + W' (half of it on the diagonal, where a tile holds every pair twice)."""

    first: Float[Tensor, "n twice"]
    second: Float[Tensor, "twice n"]
    diagonal: Float[Tensor, " n"] | None

    def tile(self, block: Block, storage: Float[Tensor, " size"]) -> Float[Tensor, "rows columns"]:
        first, second = self.first[block.rows], self.second[:, block.columns]
        out = storage[: len(first) * second.shape[1]].view(len(first), second.shape[1])
        torch.mm(first, second, out=out)
        if block.rows == block.columns:
            out.mul_(0.5)
            if self.diagonal is not None:
                out.diagonal().add_(self.diagonal[block.rows])
        return out


@dataclass(frozen=True)
class _DenseTiles:
    value: Float[Tensor, "n n"]

    def tile(self, block: Block, storage: Float[Tensor, " size"]) -> Float[Tensor, "rows columns"]:
        part, mirrored = self.value[block.rows, block.columns], self.value[block.columns, block.rows].mT
        out = torch.add(part, mirrored, out=storage[: part.numel()].view(part.shape))
        return out.mul_(0.5) if block.rows == block.columns else out


def _factors(weight: ThinWeight | DenseWeight, dtype: torch.dtype) -> _ThinTiles | _DenseTiles:
    if isinstance(weight, DenseWeight):
        return _DenseTiles(weight.value.to(dtype))
    left, right = weight.left.to(dtype), weight.right.to(dtype)
    diagonal = None if weight.diagonal is None else weight.diagonal.to(dtype)
    # left right' + right left' as one product: a tile and its mirror image in one go.
    return _ThinTiles(torch.cat([left, right], dim=1), torch.cat([right, left], dim=1).mT.contiguous(), diagonal)
