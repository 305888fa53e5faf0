"""A stationary kernel under any scales, streamed: products and gradients on a GPU without an entry of K in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.expression import Expression, Scale, Stationary
from gp_rangeformer.kernels.gpu.device_tiles import triton_works
from gp_rangeformer.kernels.tensor.profiles import profile, unresolved_distance

if TYPE_CHECKING:
    from gp_rangeformer.kernels.gpu.products import TritonProducts


class StreamedKernel:
    """K = (product of scales) * k(q).

    :param scales: 0-dimensional, outermost first, float32.
    :param coordinates: n x D, float32.
    :param alpha: of a rational quadratic.
    """

    def __init__(
        self, stationary: Stationary, scales: tuple[Tensor, ...], coordinates: Float[Tensor, "n d"], alpha: float | None
    ) -> None:
        # Imported here: where there is no GPU there may be no Triton.
        from gp_rangeformer.kernels.gpu.products import TritonProducts

        self._points = coordinates.double()
        unresolved = 0.0
        if stationary.kind == "matern12":
            unresolved = unresolved_distance(self._points.square().sum(-1, keepdim=True), coordinates.dtype)
        self._scales = [scale.double() for scale in scales]
        self._slope_factor = profile(stationary.kind, alpha, unresolved).slope_factor
        self._has_shape = alpha is not None
        self._products: TritonProducts = TritonProducts(stationary.kind, coordinates, alpha, unresolved)

    def matmul(self, vectors: Float[Tensor, "n m"], rows: slice | None = None) -> Float[Tensor, "n m"]:
        """K @ vectors in float32, with zeros outside ``rows`` (None for all of them)."""
        rows = rows or slice(0, len(vectors))
        found = self._products.matmul(vectors, rows).mul_(self._factor().to(vectors.dtype))
        return torch.nn.functional.pad(found, (0, 0, rows.start, len(vectors) - rows.stop))

    def contract(
        self,
        left: Float[Tensor, "n m"],
        right: Float[Tensor, "n m"],
        diagonal: Float[Tensor, " n"] | None,
        rows: slice | None = None,
    ) -> list[Tensor]:
        """d sum(W * K) for W = left right' + diag(diagonal): float64, for every scale, the coordinates and alpha.

        :param rows: the part of the sums that they contribute, in the shape of the whole; None for all of them.
        """
        rows = rows or slice(0, len(left))
        sums = self._products.pull(left, right, rows)
        # Every profile is 1 at distance zero, and does not change there.
        value = sums.value if diagonal is None else sums.value + diagonal[rows].sum(dtype=torch.float64)
        others = [self._scales[:index] + self._scales[index + 1 :] for index in range(len(self._scales))]
        factor = self._factor()
        pulled = sums.slopes[:, -1:] * self._points[rows] - sums.slopes[:, :-1]
        coordinates = torch.zeros_like(self._points)
        coordinates[rows] = 2 * self._slope_factor * factor * pulled
        gradients = [value * math.prod(rest) for rest in others]
        gradients.append(coordinates)
        return [*gradients, factor * sums.shape] if self._has_shape else gradients

    def _factor(self) -> Tensor:
        return math.prod(self._scales, start=self._points.new_ones(()))


def streamed(expression: Expression, arguments: tuple[Tensor, ...], dtype: torch.dtype) -> StreamedKernel | None:
    """The streamed form of a kernel on CUDA in float32, or None: another device, precision or structure.

    :param arguments: as :func:`~gp_rangeformer.kernels.embedding.embed` returns them.
    """
    device = arguments[0].device
    if device.type != "cuda" or dtype != torch.float32 or not triton_works(device.index, dtype):
        return None
    values = [argument.detach() for argument in arguments]
    scales: list[Tensor] = []
    while isinstance(expression, Scale):
        scales.append(values.pop(0).reshape(()))
        expression = expression.child
    if not isinstance(expression, Stationary):
        return None
    alpha = float(values[1]) if expression.kind == "rq" else None
    return StreamedKernel(expression, tuple(scales), values[0].to(dtype), alpha)
