"""Which operators the plug-in answers for, as tensors, and why the others stay with GPyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch import settings as gpytorch_settings
from gpytorch.beta_features import checkpoint_kernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from linear_operator.operators import (
    AddedDiagLinearOperator,
    ConstantMulLinearOperator,
    DenseLinearOperator,
    DiagLinearOperator,
    MatmulLinearOperator,
    RootLinearOperator,
    SumLinearOperator,
)
from linear_operator.operators.low_rank_root_linear_operator import LowRankRootLinearOperator
from linear_operator.operators.psd_sum_linear_operator import PsdSumLinearOperator
from linear_operator.utils.errors import NanError
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.fused_batch import FusedBatch
from gp_rangeformer.kernels.matrices.sharded import ProcessShare
from gp_rangeformer.plugin.callers import called_by
from gp_rangeformer.plugin.crossover import float32_does, host_predicts_as_fast
from gp_rangeformer.plugin.fused_operator import FusedLinearOperator
from gp_rangeformer.plugin.owners import owners
from gp_rangeformer.plugin.predictive_covariance import PredictiveCovarianceOperator
from gp_rangeformer.plugin.recognition import fused_origin
from gp_rangeformer.plugin.storage import Storage, choose_storage, hold
from gp_rangeformer.plugin.tracing import tracing
from gp_rangeformer.system.kernel_matrix import KernelMatrix
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.torch_modes import recordable, transforming

# Summands that a dense kernel matrix may be combined with; structure beyond these is left to the host.
_LOW_RANK = (RootLinearOperator, LowRankRootLinearOperator, MatmulLinearOperator)


@dataclass(frozen=True)
class EligibleSystem:
    """A = K + D: kernel (*batch) n n and noise (*batch) n as tensors in the autograd graph; owners of K's parts; the
    fused kernel that K came from, if one did.

    ``detached``: K has no graph, and gradients go through ``fused``: nobody else sees this K, or this process does not
    hold it as one tensor. Then alone ``fused`` may be a batch. ``note``: how K is held, where that is worth saying;
    ``share``: this process among those that share K.
    """

    kernel: Tensor | KernelMatrix
    noise: Tensor
    owners: tuple[int, ...]
    fused: FusedKernel | FusedBatch | None = None
    note: str | None = None
    share: ProcessShare | None = None
    detached: bool = False

    @property
    def count(self) -> int:
        """Of the elements of the batch; 1 without one."""
        return self.kernel.shape[:-2].numel()

    def fused_elements(self) -> list[FusedKernel | None]:
        """The fused kernel of every element."""
        if isinstance(self.fused, FusedBatch):
            return list(self.fused.elements())
        return [self.fused] * self.count

    def elements(self) -> list[tuple[Tensor | KernelMatrix, Tensor]]:
        """(kernel n n, noise n) of every batch element. unbind, not indexing: its backward stacks once."""
        if not isinstance(self.kernel, Tensor) or self.kernel.dim() == 2:
            return [(self.kernel, self.noise)]
        n = self.kernel.shape[-1]
        return list(zip(self.kernel.reshape(-1, n, n).unbind(0), self.noise.reshape(-1, n).unbind(0), strict=True))

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient may flow into K or D."""
        parts = (self.noise, *([self.kernel] if isinstance(self.kernel, Tensor) else ()))
        return any(part.requires_grad for part in (*parts, *(self.fused.arguments if self.fused is not None else ())))


def _evaluated(operator: Any) -> Any:
    # A kernel twice, if another thread switches lazy evaluation back on.
    while isinstance(operator, LazyEvaluatedKernelTensor | PredictiveCovarianceOperator):
        operator = operator.evaluate_kernel()
    return operator


def _is_dense(operator: Any) -> bool:
    """Whether ``operator`` is a dense matrix, or a sum that a dense matrix leaves without structure.

    GPyTorch multiplies kernels into a dense matrix as soon as one factor is dense, so products need no case.
    """
    operator = _evaluated(operator)
    kind = type(operator)
    if kind is DenseLinearOperator or kind is FusedLinearOperator:
        return True
    if kind is ConstantMulLinearOperator:
        return _is_dense(operator.base_linear_op)
    if kind not in (SumLinearOperator, PsdSumLinearOperator):
        return False
    parts = operator.linear_ops
    dense = [_is_dense(part) for part in parts]
    plain = [type(_evaluated(part)) in _LOW_RANK or isinstance(part, DiagLinearOperator) for part in parts]
    return any(dense) and all(d or p for d, p in zip(dense, plain, strict=True))


def decline_reason(operator: AddedDiagLinearOperator) -> Reason | None:
    """Why ``operator`` stays with the host, or None. Cheap tests first; the kernel is evaluated last, not densely.

    Its parts are asked, not the sum: linear_operator derives shape and dtype of a sum anew each time, which takes as
    long as all the rest (20 to 50 microseconds).
    """
    if type(operator) is not AddedDiagLinearOperator:
        return Reason.OTHER_OPERATOR
    diagonal = operator._diag_tensor
    *batch_shape, n, _ = diagonal.shape
    if n == 0:
        return Reason.SHAPE
    if below_exact_size(n, math.prod(batch_shape)):
        return Reason.TOO_SMALL
    if diagonal.dtype not in (torch.float32, torch.float64):
        return Reason.UNSUPPORTED_DTYPE
    if tracing():
        return Reason.TRACING
    if transforming():
        return Reason.TRANSFORM
    if checkpoint_kernel.value():
        return Reason.CHECKPOINTED_KERNEL
    if gpytorch_settings.observation_nan_policy.value() != "ignore":
        return Reason.NAN_POLICY
    if not _is_dense(operator._linear_op):
        return Reason.STRUCTURED_KERNEL
    kernel = _evaluated(operator._linear_op)
    if kernel.dtype != diagonal.dtype:
        return Reason.MIXED_DTYPE
    shape = kernel.shape
    if shape[-1] != n or shape[-2] != n or 0 in shape or 0 in diagonal.shape:
        return Reason.SHAPE
    if below_exact_size(n, math.prod(batch_shape), fused=False) and not _is_fused(kernel):
        return Reason.TOO_SMALL
    return None


def below_exact_size(n: int, systems: int = 1, *, fused: bool = True) -> bool:
    """Whether so many systems of n points hold fewer numbers together than one of
    :class:`~gp_rangeformer.settings.exact_size`; of twice that where the host evaluates and differentiates the kernel,
    so that less is left to save. A size of 1 means all."""
    least = settings.exact_size.value()
    return n * n * systems < (least if fused else 2 * least - 1) ** 2


def _is_fused(kernel: LinearOperator) -> bool:
    return type(kernel) is FusedLinearOperator or fused_origin(kernel) is not None


def decline_prediction_reason(operator: AddedDiagLinearOperator) -> Reason | None:
    """As :func:`decline_reason` for solves and inverse roots, of which a model's own predictions may be better off with
    the host: in float64, where a few points are asked about and its Cholesky factorisation answers. In float32 that may
    need float64, so there the host is no match for more than very few, but where it does not."""
    reason = decline_reason(operator)
    if reason is not None:
        return reason
    diagonal = operator._diag_tensor
    n, device = diagonal.shape[-1], diagonal.device
    if not host_predicts_as_fast(n, torch.float64, device) or not called_by_prediction():
        return None
    left = host_predicts_as_fast(n, diagonal.dtype, device) or _float32_does(operator)
    return Reason.HOST_CHOLESKY if left else None


def _float32_does(operator: AddedDiagLinearOperator) -> bool:
    kernel, noise = _evaluated(operator._linear_op).diagonal(dim1=-2, dim2=-1), operator._diag_tensor._diagonal()
    condition = float(((kernel + noise).detach().amax(-1) / noise.detach().amin(-1)).amax())
    return float32_does(noise.shape[-1], condition)


def eligible(operator: AddedDiagLinearOperator, reason: Reason | None) -> EligibleSystem | Reason:
    """The system as tensors, or why it stays with the host.

    :param reason: what :func:`decline_reason` or :func:`decline_prediction_reason` says.
    """
    if reason is not None:
        return reason
    kernel_operator = _evaluated(operator._linear_op)
    noise = recordable(operator._diag_tensor._diagonal())
    if noise.device != kernel_operator.device:
        raise RuntimeError(
            f"the kernel matrix is on {kernel_operator.device}, the noise on {noise.device}: move model and likelihood "
            "together"
        )
    *kernel_batch, n, _ = kernel_operator.shape
    batch_shape = torch.Size(kernel_batch)
    if noise.shape[:-1] != batch_shape:
        batch_shape = torch.broadcast_shapes(batch_shape, noise.shape[:-1])
    if isinstance(kernel_operator, FusedLinearOperator) and not batch_shape:
        return _not_one_tensor(kernel_operator, noise)
    fused = None if batch_shape else fused_origin(kernel_operator)
    kernel = recordable(kernel_operator.to_dense())
    if kernel.shape[:-2] != batch_shape:  # an expansion is a node between K and the kernel that made it
        kernel = kernel.expand(*batch_shape, n, n)
    note = None
    if fused is None and (settings.kernel_storage.value() == "tiles" or settings.process_group.value() is not None):
        note = "K is held as a dense matrix: only single kernels that settings.fused_kernels covers are held otherwise"
    return EligibleSystem(kernel, noise.expand(*batch_shape, n), owners(kernel_operator), fused, note)


def _not_one_tensor(operator: FusedLinearOperator, noise: Tensor) -> EligibleSystem:
    """A kernel matrix that is recomputed, or shared between processes as the settings say now."""
    storage = Storage(False, operator.note or "K is recomputed at every product")
    if settings.process_group.value() is not None:
        storage = choose_storage(operator.fused.n, operator.dtype, operator.device)
    if storage.share is not None:
        storage.share.require_same("kernel matrices", *operator.fused.arguments, noise)
    fused, kernel = hold(operator.fused, storage)
    return EligibleSystem(kernel, noise, owners(operator), fused, storage.note, storage.share, detached=True)


def check_rhs(system: EligibleSystem, rhs: Tensor, *, looked_at: bool = True, of_solve: bool = False) -> None:
    """Refuse what no solver can answer.

    :param of_solve: it may also be what a prediction asks, which the error then names.
    :param looked_at: False leaves it to a later call whether it is finite, which waits for a device.
    :raises RuntimeError: the right-hand side is on another device.
    :raises NanError: it holds NaN or infinity.
    :raises ProcessGroupError: processes that share K have different ones.
    """
    if rhs.device != system.kernel.device:
        raise RuntimeError(
            f"the right-hand side is on {rhs.device}, the kernel matrix on {system.kernel.device}: "
            "move the targets with .to(device)"
        )
    if system.share is not None:  # first: one process that raises leaves the others waiting
        system.share.require_same("right-hand sides", rhs)
    # The sum first, which is one operation; finite numbers may overflow in it.
    if looked_at and not bool(rhs.sum(dtype=torch.float64).isfinite()) and not bool(rhs.isfinite().all()):
        what, where = ("targets minus mean", "the targets")
        if of_solve:
            what, where = f"{what}, or K of data and other points", f"{where} and the points that are predicted"
        raise NanError(
            f"the right-hand side ({what}) holds NaN or infinity: clean {where}, or use "
            "gpytorch.settings.observation_nan_policy('mask')"
        )


def called_by_covar_cache() -> bool:
    """Whether GPyTorch's predictive-variance cache asks: the one caller that uses only S S' of an inverse root S.

    Others (fantasies) combine the inverse root with the root and need the triangular pair.
    """
    return called_by("covar_cache") and bool(gpytorch_settings.detach_test_caches.on())


def called_by_prediction() -> bool:
    """Whether a prediction strategy asks, for a mean, a covariance or the root that its variances share."""
    return called_by("_mean_cache", "exact_predictive_covar", "covar_cache")


def called_by_predictive_covariance() -> bool:
    """Whether the solution will be subtracted from a prior covariance."""
    return called_by("exact_predictive_covar")


def shapes_match(shape: torch.Size, rhs: Tensor) -> bool:
    """The host's own condition on the right-hand side of inv_quad_logdet, for an operator of this shape."""
    if rhs.numel() == 0:
        return False
    if len(shape) == 2 and rhs.dim() == 1:
        return shape[-1] == rhs.numel()
    return rhs.dim() == len(shape) and shape[:-1] == rhs.shape[:-1]
