"""How K is held: as a dense matrix where that fits, recomputed tile by tile or shared between processes elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gp_rangeformer import settings
from gp_rangeformer.allocation import workspace
from gp_rangeformer.allocation.free_memory import Demand, InsufficientMemoryError, free_bytes_for
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.matrices.sharded import ProcessShare, ShardedKernelMatrix
from gp_rangeformer.system.kernel_matrix import KernelMatrix

_REMEDIES = (
    "settings.kernel_storage('tiles') recomputes K at every product instead, float32 takes half the memory of float64, "
    "and settings.process_group shares K between processes"
)
# Of processes that do not know their free memory.
_PLENTY = 2**62


@dataclass(frozen=True)
class Storage:
    """Whether K (or this process's rows of it) is held as a dense matrix; the note for the report; the processes that
    share it, if several do."""

    dense: bool
    note: str | None = None
    share: ProcessShare | None = None


def choose_storage(n: int, dtype: torch.dtype, device: torch.device) -> Storage:
    """What the settings and the free memory say about a kernel matrix that can be recomputed.

    In a process group every process calls this, and the least memory of any decides for all.

    :raises InsufficientMemoryError: under ``settings.kernel_storage("dense")``, if K does not fit.
    :raises ProcessGroupError: as :meth:`~gp_rangeformer.kernels.matrices.sharded.ProcessShare.of`.
    """
    group, asked = settings.process_group.value(), settings.kernel_storage.value()
    share = None if group is None else ProcessShare.of(None if group is True else group, device)
    over = "" if share is None else f" over {share.count} processes"
    if asked == "tiles":
        return Storage(False, f"K is recomputed at every product{over}, as settings.kernel_storage asks", share)
    demand = Demand(1.0 if share is None else 1 / share.count, settings.solver.value().thin_columns, dtype.itemsize)
    lacking = workspace.shortage(demand, n, device)
    if share is not None:
        free = free_bytes_for(n, device)
        # A GPU belongs to one process; processes on one machine share its memory.
        users = share.neighbours(device) if device.type == "cpu" else 1
        free = share.smallest(_PLENTY if free is None else free // users, device)
        lacking = demand.shortage(n, free)
    if lacking is None:
        return Storage(True, None if share is None else f"K is held in rows{over}", share)
    shortage = f"as a dense {_name(dtype)} matrix{over} it does not fit on {device} ({lacking})"
    if asked == "dense":
        raise InsufficientMemoryError(f"K of n = {n}: {shortage}; {_REMEDIES}")
    return Storage(False, f"K is recomputed at every product{over}, up to twice as slow: {shortage}", share)


def hold(fused: FusedKernel, storage: Storage) -> tuple[FusedKernel, KernelMatrix]:
    """K held as ``storage`` says where it is not one dense tensor, and the fused kernel whose gradients match."""
    share = storage.share
    if share is None:
        return fused, fused.recomputed()
    fused = FusedKernel.of_arguments(fused.expression, fused.arguments, fused.n, fused.dtype, share, fused.parameters)
    if not storage.dense:
        return fused, fused.recomputed()
    return fused, ShardedKernelMatrix(fused.expression, fused.arguments, fused.n, fused.dtype, share)


def require_dense(why: str, n: int, dtype: torch.dtype, device: torch.device) -> None:
    """Foresee that an n x n matrix does not fit.

    :param why: a clause that says who needs it.
    :raises InsufficientMemoryError: if it does not.
    """
    lacking = workspace.shortage(Demand(1.0, 0, dtype.itemsize), n, device)
    if lacking is not None:
        raise InsufficientMemoryError(
            f"{why}, of n = {n}, in {_name(dtype)}, which does not fit on {device}: {lacking}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
