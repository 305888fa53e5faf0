"""The kernel matrix between the points of a model and other points, some of its columns at a time, never held whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gp_rangeformer.kernels.bind import KernelTiles, bind
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.evaluate import of_points
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.native.product import multiply_wide
from gp_rangeformer.kernels.tensor.plain import plain
from gp_rangeformer.kernels.tiles import Block, spans, tile_size
from gp_rangeformer.torch_modes import differentiated, no_autocast

# Numbers of a strip of the matrix: it is written and read once, and stays in the caches that cores share meanwhile.
_STRIP, _STRIP_CUDA = 2**21, 2**26


class CrossKernel:
    """K(others, points), t x n: what a prediction reads of a kernel. Made strip by strip, of some of the others.

    ``arguments``: of the points, then the others, in the autograd graph of ``others`` and ``parameters``, which are as
    they were given, or none of a part.

    :param points: n x d, float32 or float64.
    :param others: t x d of their dtype, at least one; may require a gradient, and overlap with the points.
    :param parameters: constrained values in the order of :func:`~gp_rangeformer.kernels.expression.parameter_names`.
    """

    def __init__(
        self,
        expression: Expression,
        points: Float[Tensor, "n d"],
        others: Float[Tensor, "t d"],
        parameters: tuple[Tensor, ...],
    ) -> None:
        arguments = embed(expression, torch.cat([points, others]), parameters, leading=len(points))
        self._hold(expression, arguments, len(points), len(others), points.dtype)
        self.parameters = parameters

    def _hold(self, expression: Expression, arguments: tuple[Tensor, ...], n: int, t: int, dtype: torch.dtype) -> None:
        self.expression, self.arguments, self.n, self.t, self.dtype = expression, arguments, n, t, dtype
        self.parameters: tuple[Tensor, ...] = ()

    def to_some(self, index: Int[Tensor, " r"]) -> CrossKernel:
        """From some of the points alone."""
        positions = torch.cat([index, self.n + torch.arange(self.t, device=index.device)])
        return self._at(positions, len(index), self.t)

    def of_some(self, index: Int[Tensor, " c"]) -> CrossKernel:
        """Of some of the others alone."""
        positions = torch.cat([torch.arange(self.n, device=index.device), self.n + index])
        return self._at(positions, self.n, len(index))

    def _at(self, positions: Int[Tensor, " p"], n: int, t: int) -> CrossKernel:
        cross = CrossKernel.__new__(CrossKernel)
        cross._hold(self.expression, of_points(self.arguments, positions), n, t, self.dtype)
        return cross

    def widened(self) -> CrossKernel:
        """The same in float64, of these points and parameters, in their graph."""
        cross = CrossKernel.__new__(CrossKernel)
        arguments = tuple(argument.double() for argument in self.arguments)
        cross._hold(self.expression, arguments, self.n, self.t, torch.float64)
        return cross

    @property
    def device(self) -> torch.device:
        return self.arguments[0].device

    @property
    def of_others(self) -> tuple[Tensor, ...]:
        """The arguments of the others alone, in their graph."""
        return of_points(self.arguments, slice(self.n, None))

    @property
    def known(self) -> Bool[Tensor, " t"]:
        """Which of the others have finite coordinates: the kernel would take infinite ones for ones far away."""
        known = torch.ones(self.t, dtype=torch.bool, device=self.device)
        for argument in self.of_others:
            if argument.dim() == 2:
                known &= argument.detach().isfinite().all(-1)
        return known

    def strips(self) -> Iterator[tuple[slice, Float[Tensor, "c n"]]]:
        """(which of the others, their rows of the matrix), without a graph; the rows are overwritten by the next."""
        numbers = _STRIP if self.device.type == "cpu" else _STRIP_CUDA
        width = min(self.t, max(1, numbers // self.n))
        with torch.no_grad(), no_autocast():
            rows = torch.empty(width, self.n, dtype=self.dtype, device=self.device)
            tiles = self._tiles()
            for others in spans(0, self.t, width):
                strip = rows[: others.stop - others.start]
                self._write(tiles, others, strip)
                yield others, strip

    def dense(self) -> Float[Tensor, "t n"]:
        """All of it, without a graph."""
        with torch.no_grad(), no_autocast():
            out = torch.empty(self.t, self.n, dtype=self.dtype, device=self.device)
            self._write(self._tiles(), slice(0, self.t), out)
        return out

    def product(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "t k"]:
        """K(others, points) @ vectors, in the graph of ``others``, parameters and points, not of ``vectors``. Sums and
        products in float64 of a float64 block, else in the dtype of K. One evaluation, one more a backward pass."""
        return _Product.apply(self, vectors.detach(), *self.arguments)  # type: ignore[return-value]

    def prior(self) -> Float[Tensor, ""]:
        """k(x, x), which all points have in common, without a graph."""
        with torch.no_grad():
            one = of_points(tuple(argument.detach() for argument in self.arguments), slice(0, 1))
            return plain(self.expression, one, 1, self.dtype).reshape(())

    def _tiles(self) -> KernelTiles:
        arguments = tuple(argument.detach() for argument in self.arguments)
        return bind(self.expression, arguments, self.n + self.t, self.dtype, tile_size(self.device))

    def _write(self, tiles: KernelTiles, others: slice, out: Float[Tensor, "c n"]) -> None:
        rows = slice(self.n + others.start, self.n + others.stop)
        if not tiles.mirrored:
            tiles.value(Block(rows, slice(0, self.n)), out)
            return
        size = tile_size(self.device)
        for own in spans(rows.start, rows.stop, size):
            for columns in spans(0, self.n, size):
                inside = slice(own.start - rows.start, own.stop - rows.start)
                tiles.value(Block(own, columns), out[inside, columns])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cross: CrossKernel, vectors: Tensor, *arguments: Tensor) -> Tensor:
        ctx.cross = cross
        ctx.save_for_backward(vectors, *arguments)
        out = vectors.new_empty(cross.t, vectors.shape[1])
        for others, strip in cross.strips():
            out[others] = strip_product(strip, vectors)
        return out

    @staticmethod
    def backward(ctx, g_out: Tensor):  # type: ignore[override]
        vectors, *arguments = ctx.saved_tensors
        cross: CrossKernel = ctx.cross
        if differentiated(g_out):
            wanted = [a for a, needed in zip(arguments, ctx.needs_input_grad[2:], strict=True) if needed]
            with torch.enable_grad(), no_autocast():
                whole = plain(cross.expression, tuple(arguments), cross.n + cross.t, torch.float64)
                product = whole[cross.n :, : cross.n] @ vectors.double()
            found = iter(torch.autograd.grad(product, wanted, g_out.double(), create_graph=torch.is_grad_enabled()))
            return None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[2:])
        with no_autocast():
            gradients = _pulled(cross, g_out.to(cross.dtype), vectors.to(cross.dtype))
        pairs = zip(gradients, arguments, strict=True)
        return None, None, *(gradient.to(argument.dtype).reshape(argument.shape) for gradient, argument in pairs)


def strip_product(strip: Float[Tensor, "c n"], vectors: Float[Tensor, "n k"]) -> Float[Tensor, "c k"]:
    """strip @ vectors, in float64 where ``vectors`` are."""
    if vectors.dtype == strip.dtype:
        return strip @ vectors
    return multiply_wide(strip, vectors)[0]


def _pulled(cross: CrossKernel, left: Float[Tensor, "t k"], right: Float[Tensor, "n k"]) -> list[Tensor]:
    """d sum(left right' * K(others, points)) for every argument."""
    tiles = cross._tiles()
    compiled = library_on(cross.device) is not None
    size = tile_size(cross.device, compiled=compiled)
    for others in spans(0, cross.t, size):
        for columns in spans(0, cross.n, size):
            block = Block(slice(cross.n + others.start, cross.n + others.stop), columns)
            tiles.pull(block, left[others] @ right[columns].mT)
    return tiles.gradients()
