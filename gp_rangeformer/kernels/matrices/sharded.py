"""K over the processes of a torch.distributed group: every process runs the same script, and holds a part.

All that is long and thin is replicated: each process has all points and all vectors, and takes the same decisions from
the same bits. K is either held, each process some rows, or recomputed, each process some rows or tiles
(:class:`~gp_rangeformer.kernels.matrices.recomputed.RecomputedKernelMatrix`). A product communicates n x k numbers.
"""

from __future__ import annotations

import itertools
import platform
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor, distributed

from gp_rangeformer import settings
from gp_rangeformer.kernels.evaluate import evaluate_rows
from gp_rangeformer.kernels.expression import Expression
from gp_rangeformer.kernels.gpu.device_tiles import triton_works
from gp_rangeformer.kernels.matrices.expression_matrix import ExpressionMatrix
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.native.interface import BATCH
from gp_rangeformer.kernels.native.product import multiply, multiply_wide
from gp_rangeformer.kernels.tiles import Block, tile_size

# Sums of the same numbers in the same order: processes on unlike machines may round differently.
_SAME = 1e-6
_NOT_A_NUMBER = 1e300  # in its place


class ProcessGroupError(RuntimeError):
    """The process group cannot be used, or its processes do not do the same."""


@dataclass(frozen=True)
class ProcessShare:
    """This process in its group; a :class:`~gp_rangeformer.kernels.matrices.share.Share`. Tiles go round, rows in one
    piece."""

    group: distributed.ProcessGroup
    rank: int
    count: int

    @classmethod
    def of(cls, group: distributed.ProcessGroup | None, device: torch.device) -> ProcessShare:
        """:param group: None for torch.distributed's default group.
        :param device: where the tensors are; the group's backend must serve it (gloo CPUs, nccl GPUs).
        :raises ProcessGroupError: without an initialised group of which this process is a member, or if it does not
            serve the device, or if its processes would divide K in different ways. Every process raises that.
        """
        if not distributed.is_available() or not distributed.is_initialized():
            raise ProcessGroupError(
                "settings.process_group is set, but torch.distributed has no process group: call "
                "torch.distributed.init_process_group first (torchrun sets what it needs), or leave the context"
            )
        group = group if group is not None else distributed.group.WORLD
        try:
            rank, count = distributed.get_rank(group), distributed.get_world_size(group)
            served = distributed.get_backend_config(group)
        except (ValueError, RuntimeError) as error:
            raise ProcessGroupError(f"settings.process_group is no longer valid: {error}") from error
        if rank < 0:
            raise ProcessGroupError("this process is not a member of settings.process_group")
        if f"{device.type}:" not in served:
            raise ProcessGroupError(
                f"the tensors are on {device}, which the process group does not serve ({served}): use the backend "
                "nccl for GPUs, gloo for CPUs, or move model and data"
            )
        assert group is not None
        share = cls(group, rank, count)
        if not share.same(_way_of_dividing(device), device):
            raise ProcessGroupError(
                "the processes of settings.process_group would divide K in different ways: give all of them the same "
                "number of threads (OMP_NUM_THREADS, torch.set_num_threads), and all or none compiled kernels (a C++ "
                "compiler on CPUs, Triton on GPUs; settings.fused_kernels)"
            )
        if not share.same(_settings(), device):
            raise _different("settings")
        return share

    def blocks(self, blocks: Iterable[Block]) -> Iterator[Block]:
        return itertools.islice(blocks, self.rank, None, self.count)

    def rows(self, n: int) -> slice:
        bounds = row_bounds(n, BATCH, self.count)  # whole batches of compiled code: none is made for few rows
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def sum(self, part: Tensor) -> Tensor:
        part = part.contiguous()
        distributed.all_reduce(part, group=self.group)
        return part

    def smallest(self, value: int, device: torch.device) -> int:
        """The smallest ``value`` of any process."""
        found = torch.tensor([value], device=device)
        distributed.all_reduce(found, distributed.ReduceOp.MIN, group=self.group)
        return int(found)

    def same(self, value: int, device: torch.device) -> bool:
        """Whether ``value`` is that of every process."""
        return self.smallest(value, device) == -self.smallest(-value, device)

    def everywhere(self, holds: bool, device: torch.device) -> bool:
        return self.smallest(int(holds), device) == 1

    def neighbours(self, device: torch.device) -> int:
        """How many of the processes, this one included, run on this machine."""
        own = torch.tensor([[zlib.crc32(platform.node().encode())]], device=device)
        return int((self.gather(own, [1] * self.count) == own).sum())

    def gather(self, part: Shaped[Tensor, "rows k"], counts: list[int]) -> Shaped[Tensor, "n k"]:
        """The parts of all processes below one another; process i has ``counts[i]`` rows."""
        largest, k = max(counts), part.shape[1]
        padded = part.contiguous()
        if len(part) < largest:
            padded = torch.cat([part, part.new_zeros(largest - len(part), k)])
        everything = part.new_empty(self.count * largest, k)
        distributed.all_gather(list(everything.split(largest)), padded, group=self.group)
        if min(counts) == largest:
            return everything
        return torch.cat([piece[:own] for piece, own in zip(everything.split(largest), counts, strict=True)])

    def require_same(self, what: str, *tensors: Tensor) -> None:
        """Compare sums over ``tensors`` between the processes. O(their size), and some numbers to communicate.

        :raises ProcessGroupError: if they differ, in every process.
        """
        own = torch.stack([fingerprint for tensor in tensors for fingerprint in _fingerprint(tensor)]).unsqueeze(0)
        # The length first: a collective of unequal shapes may hang instead of failing.
        if not self.same(own.shape[1], own.device):
            raise _different(what)
        everyone = self.gather(own, [1] * self.count)
        spread = (everyone - everyone[0]).abs() > _SAME * everyone.abs().amax(0)
        if bool(spread.any()):
            raise _different(what)


def _settings() -> int:
    """A number for all of them: who decides otherwise in one process waits there for what the others never send."""
    current = settings.current()
    del current["process_group"]
    return zlib.crc32(re.sub(" at 0x[0-9a-f]+", "", repr(sorted(current.items()))).encode())  # of functions


def _way_of_dividing(device: torch.device) -> int:
    """A number for all that decides it: parts of different divisions would add up to another matrix, unnoticed."""
    on_cuda = device.type == "cuda"
    compiled = triton_works(device.index, torch.float32) if on_cuda else library_on(device) is not None
    return 2 * tile_size(device) + compiled


def _fingerprint(tensor: Tensor) -> tuple[Tensor, ...]:
    """Its size, and two sums that notice other numbers and another order. NaN equals NaN here, which others report, and
    no number."""
    flat = tensor.detach().double().nan_to_num(nan=_NOT_A_NUMBER).reshape(-1)
    weights = torch.linspace(1, 2, len(flat), dtype=flat.dtype, device=flat.device)
    size = torch.tensor(float(len(flat)), dtype=flat.dtype, device=flat.device)
    return size, flat.abs().sum(), (flat.abs() * weights).sum()


def _different(what: str) -> ProcessGroupError:
    return ProcessGroupError(
        f"the processes of settings.process_group hold different {what}: every process must run the same script with "
        "the same data (in the same order), the same seeds and the same settings"
    )


class ShardedKernelMatrix(ExpressionMatrix):
    """K with some rows in every process; a :class:`~gp_rangeformer.system.kernel_matrix.KernelMatrix`.

    Memory: n^2 / p numbers, rounded up to tiles. A product takes 2 n^2 k / p flops, and every process receives n k
    numbers.

    :param arguments: of ``n`` points, as :func:`~gp_rangeformer.kernels.embedding.embed` returns them; the same in
        every process.
    """

    def __init__(
        self, expression: Expression, arguments: tuple[Tensor, ...], n: int, dtype: torch.dtype, share: ProcessShare
    ) -> None:
        super().__init__(expression, arguments, n, dtype)
        self._share = share
        bounds = row_bounds(n, tile_size(self._arguments[0].device), share.count)
        self._counts = [stop - start for start, stop in itertools.pairwise(bounds)]
        own = slice(bounds[share.rank], bounds[share.rank + 1])
        self._rows = evaluate_rows(expression, self._arguments, n, dtype, own)

    def matmul(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return self._share.gather(multiply(self._rows, vectors), self._counts)

    def wide_product(self, vectors: Float64[Tensor, "n k"]) -> tuple[Float64[Tensor, "n k"], Float64[Tensor, " n"]]:
        """K @ vectors and sum_j K_ij^2, every product and sum in float64."""
        product, squares = multiply_wide(self._rows, vectors)
        everything = self._share.gather(torch.cat([product, squares.unsqueeze(-1)], dim=1), self._counts)
        return everything[:, :-1], everything[:, -1]

    def columns(self, index: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        return self._share.gather(self._rows.index_select(1, index), self._counts)

    def is_finite(self) -> bool:
        return self.everywhere(bool(self._rows.sum(dtype=torch.float64).isfinite()))

    def everywhere(self, holds: bool) -> bool:
        return self._share.everywhere(holds, self.device)


def row_bounds(n: int, size: int, count: int) -> list[int]:
    """Where the rows of process 0, 1, ... start, and n: multiples of ``size``, as equal as they allow."""
    size = min(size, n)
    tiles = -(-n // size)
    return [min(number * tiles // count * size, n) for number in range(count + 1)]
