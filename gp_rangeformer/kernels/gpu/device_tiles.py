"""Whether the device has a compiled way to make tiles: Triton on CUDA, where it works; nothing elsewhere."""

from __future__ import annotations

import functools
import warnings
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.expression import Kind
from gp_rangeformer.kernels.tiles import Block

Tile = Float[Tensor, "rows columns"]


@runtime_checkable
class DeviceTiles(Protocol):
    """Tiles of one stationary kernel, as :class:`~gp_rangeformer.kernels.gpu.tiles.TritonTiles` computes them."""

    def value(self, block: Block, out: Tile) -> None: ...

    def open(self, block: Block, value: Tile, slope: Tile, shape_slope: Tile) -> None: ...


def device_tiles(
    kind: Kind, points: Float[Tensor, "n d"], alpha: float | None, unresolved: float
) -> DeviceTiles | None:
    """Compiled tiles of ``kind`` for ``points`` on CUDA; None elsewhere, or where nothing can compile them."""
    if points.device.type != "cuda" or not triton_works(points.device.index, points.dtype):
        return None
    from gp_rangeformer.kernels.gpu.tiles import TritonTiles

    return TritonTiles(kind, points, alpha, unresolved)


def copy_transposed(source: Float[Tensor, "rows columns"], target: Float[Tensor, "columns rows"]) -> None:
    """target = source'. PyTorch's own copy on a GPU reads or writes single numbers of distant cache lines."""
    if source.device.type == "cuda" and triton_works(source.device.index, source.dtype):
        from gp_rangeformer.kernels.gpu import tiles as triton_tiles

        triton_tiles.copy_transposed(source, target)
    else:
        target.copy_(source.mT)


@functools.cache
def triton_works(index: int | None, dtype: torch.dtype) -> bool:
    """Tried once per device and precision, on one point: without Triton, a compiler or a recent enough GPU the tensor
    operations answer, several times slower, and a warning says so once."""
    try:
        from gp_rangeformer.kernels.gpu.tiles import TritonTiles

        point = torch.zeros(1, 1, device="cuda" if index is None else f"cuda:{index}", dtype=dtype)
        tile = torch.empty_like(point)
        TritonTiles("rbf", point, None, 0.0).value(Block(slice(0, 1), slice(0, 1)), tile)
        if float(tile) == 1:
            return True
        cause: object = "it computed a wrong value"
    except Exception as error:  # whatever the compiler, the linker or the driver may raise
        cause = error
    warnings.warn(
        f"kernel matrices on this GPU are made by PyTorch's own operations, several times slower: Triton failed "
        f"({cause}). It needs the package triton, a C compiler and a GPU of compute capability 7 or newer",
        RuntimeWarning,
        stacklevel=2,
    )
    return False
