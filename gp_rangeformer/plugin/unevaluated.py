"""The likelihood of a kernel that nobody has evaluated yet: from its points and parameters straight to the solvers.

GPyTorch evaluates the kernel lazily, inside log_prob, and nobody has seen the matrix by then. So where the kernel has a
fused form, K needs no place in the autograd graph, and what linear_operator does to get hold of it (a tree of
representations, shapes derived anew at every turn) is spared: a third of a step at n = 100. A matrix that is read from
the same output afterwards is another one, which the likelihood does not depend on; one that is read before is kept.
"""

from __future__ import annotations

import pickle

import torch
from gpytorch import settings as gpytorch_settings
from gpytorch.beta_features import checkpoint_kernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.utils.memoize import _is_in_cache
from linear_operator.operators import AddedDiagLinearOperator
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.fused_batch import FusedBatch
from gp_rangeformer.plugin.eligibility import EligibleSystem, below_exact_size
from gp_rangeformer.plugin.owners import owner_of
from gp_rangeformer.plugin.recognition import recognise_selected
from gp_rangeformer.plugin.storage import choose_storage, hold
from gp_rangeformer.plugin.tracing import tracing
from gp_rangeformer.torch_modes import no_autocast, recordable, saving_elsewhere

_NO_KEYWORDS = pickle.dumps({})  # how GPyTorch's memoisation spells a call without keyword arguments


def unevaluated(operator: AddedDiagLinearOperator, targets: torch.Size, anew: bool = False) -> EligibleSystem | None:
    """The system of ``operator`` = lazily evaluated kernel + diagonal, or None: then its kernel is evaluated as ever.

    :param targets: their shape, (*batch) n: as many as there are systems.
    :param anew: also where somebody has evaluated the kernel already.
    :raises InsufficientMemoryError: as :func:`~gp_rangeformer.plugin.storage.choose_storage`.
    """
    lazy = operator._linear_op
    diagonal = operator._diag_tensor
    n = diagonal.shape[-1]
    if targets[-1] != n or below_exact_size(n, targets[:-1].numel()):
        return None
    if type(lazy) is not LazyEvaluatedKernelTensor or _declined(lazy, anew):
        return None
    x = lazy.x1
    if lazy.x2 is not x or x.dim() < 2 or x.shape[-2] != n:
        return None
    if diagonal.dtype != x.dtype or diagonal.device != x.device:
        return None
    # The graph of K is that of the moment at which the user called the kernel.
    with torch.set_grad_enabled(lazy._is_grad_enabled), no_autocast():
        fused = recognise_selected(lazy.kernel, x)
    if fused is None:
        return None
    return _system(fused, targets[:-1], recordable(diagonal._diagonal()), owner_of(lazy.kernel))


def _declined(lazy: LazyEvaluatedKernelTensor, anew: bool) -> bool:
    """Whether settings, or what has happened already, ask for the long way."""
    if settings.fused_kernels.off() or settings.process_group.value() is not None:
        return True
    if lazy.last_dim_is_batch or lazy.params:
        return True
    if not anew and _is_in_cache(lazy, "kernel_eval", kwargs_pkl=_NO_KEYWORDS):
        return True
    if checkpoint_kernel.value() or tracing() or gpytorch_settings.observation_nan_policy.value() != "ignore":
        return True
    return saving_elsewhere()


def _system(
    fused: FusedKernel | FusedBatch, batch_shape: torch.Size, noise: Tensor, owner: int
) -> EligibleSystem | None:
    n, device = fused.n, noise.device
    storage = choose_storage(n, fused.dtype, device)
    if isinstance(fused, FusedKernel):
        if batch_shape or noise.dim() != 1:
            return None
        if not storage.dense:
            fused, kernel = hold(fused, storage)
        else:
            kernel = fused.evaluate()
        return EligibleSystem(kernel, noise, (owner,), fused, storage.note, detached=True)
    if batch_shape != fused.shape or not storage.dense or noise.dim() > 1 + len(batch_shape):
        return None
    kernel = fused.evaluate().view(*batch_shape, n, n)
    return EligibleSystem(kernel, noise.expand(*batch_shape, n), (owner,), fused, detached=True)
