"""Cholesky factorisations of A = K + D: whether there is room, in which precision, with the host's jitter policy."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from linear_operator import settings as host_settings
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from gp_rangeformer.allocation.free_memory import Demand, InsufficientMemoryError
from gp_rangeformer.allocation.workspace import shortage
from gp_rangeformer.system.linear_system import LinearSystem

# n x n matrices beside K: the matrix and its factor, or the factor and the copies that LAPACK's other routines make of
# it (measured with torch 2.13 on a CPU); and numbers per row and right-hand side of a solve with its residual.
MATRICES, ROOT_MATRICES, _PER_COLUMN = 2.3, 2.2, 12


def solve_by_factor(
    factor: Float[Tensor, "*batch n n"], rhs: Float[Tensor, "*batch n m"]
) -> Float[Tensor, "*batch n m"]:
    """(L L')^-1 rhs. 2 n^2 m flops a system. Not by :func:`torch.cholesky_solve`, which copies the factor: ten times as
    long for one column at n = 4000."""
    half = torch.linalg.solve_triangular(factor, rhs, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def exact_path_fits(system: LinearSystem, columns: int, dtype: torch.dtype | None = None) -> bool:
    """Whether a factorisation in ``dtype``, else that of the system, and a solve with so many right-hand sides fit into
    free memory, as far as is known."""
    return lacking_for(system, dtype or system.dtype, MATRICES, _PER_COLUMN * columns) is None


def lacking_for(system: LinearSystem, dtype: torch.dtype, matrices: float, columns: int = 0) -> str | None:
    """What is short, in words, for so many n x n matrices and columns of n, in any process that shares K; None where
    nothing is, as far as known."""
    lacking = shortage(Demand(matrices, columns, dtype.itemsize), system.size, system.device)
    return lacking if system.everywhere(lacking is None) else lacking or "another process has less memory free"


def _dense(system: LinearSystem, dtype: torch.dtype) -> Tensor:
    """A, if there is room for it and its factor.

    :raises InsufficientMemoryError: if there is not.
    """
    lacking = lacking_for(system, dtype, MATRICES)
    if lacking is not None:
        raise InsufficientMemoryError(
            f"the exact path needs K + D as a dense {str(dtype).removeprefix('torch.')} matrix of n = {system.size}, "
            f"and its Cholesky factor, which do not fit on {system.device} ({lacking}). The RangeFormer solver needs "
            "neither: where it could not certify its answer, raise rank, max_passes or tolerance of settings.solver, "
            "or the likelihood's noise; float64 helps where rounding is the cause"
        )
    return system.to_dense(dtype)


def factorised(system: LinearSystem, dtype: torch.dtype) -> Float[Tensor, "n n"] | None:
    """L with A = L L', by one factorisation in ``dtype``; None where A is not positive definite in it.

    :raises NanError: K or D holds NaN or infinity.
    :raises InsufficientMemoryError: the dense matrix and its factor do not fit.
    """
    # In place: seen from its other side a symmetric matrix has the order of LAPACK, and no copy of it is made.
    factor = _dense(system, dtype).mT
    info = torch.empty((), dtype=torch.int32, device=factor.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    if bool((info != 0) | ~factor.diagonal().sum().isfinite()):
        if not system.is_finite():
            raise NanError(
                "the kernel matrix or the noise holds NaN or infinity: look for NaN in the training inputs and for "
                "hyperparameters that overflowed (a smaller learning rate or a constraint helps)"
            )
        return None
    return factor


def factorised_with_jitter(system: LinearSystem, dtype: torch.dtype) -> tuple[Float[Tensor, "n n"], float]:
    """L and what had to be added to the diagonal: the host's policy (linear_operator.settings.cholesky_jitter,
    cholesky_max_tries), for the system's own dtype.

    :raises NotPSDError: not even its largest jitter is enough.
    """
    dense = _dense(system, dtype)
    first = host_settings.cholesky_jitter.value(system.dtype)
    added = 0.0
    for attempt in range(host_settings.cholesky_max_tries.value() or 0):
        jitter = first * 10**attempt
        dense.diagonal().add_(jitter - added)
        added = jitter
        warnings.warn(f"A not p.d., added jitter of {jitter:.1e} to the diagonal", NumericalWarning, stacklevel=2)
        factor, info = torch.linalg.cholesky_ex(dense)
        if not bool(info):
            return factor, jitter
    remedies = ["raise the likelihood's noise constraint", "remove duplicated inputs"]
    if system.dtype != torch.float64:
        remedies.append("use float64")
    raise NotPSDError(
        f"the {system.size} x {system.size} kernel matrix plus noise is not positive definite even with "
        f"jitter {added:.0e}: {' or '.join(remedies)}"
    )
