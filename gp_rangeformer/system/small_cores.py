"""Between the device of the big matrices and the host, where what is small is decided and computed.

A GPU waits for every number that is read from it, and takes as long to start an operation on 33 x 33 numbers as on a
million. So numbers that decide come over together, and cores of a few dozen rows are factorised here, in float64.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.system.reading import together

_UNDIVIDED = 32  # rows of a core that no LAPACK hands to several threads


def to_host(*tensors: Tensor) -> list[NDArray[np.float64]]:
    """The tensors as float64 arrays of their shapes, in one transfer; to be read, not written: on a CPU they may share
    the tensors' memory."""
    here = [tensor.detach() for tensor in tensors]
    if any(tensor.device.type != "cpu" for tensor in here):
        here = together(here)
    return [tensor.double().numpy() for tensor in here]


def to_device(array: NDArray[np.float64], like: Tensor) -> Tensor:
    """The array in the dtype and on the device of ``like``; nothing waits for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(like.dtype)
    return tensor.to(like.device, non_blocking=True)


def symmetric(core: Float64[np.ndarray, "k k"]) -> Float64[np.ndarray, "k k"]:
    """The symmetric part."""
    return 0.5 * (core + core.T)


def product(left: Float64[np.ndarray, "k l"], right: Float64[np.ndarray, "l m"]) -> Float64[np.ndarray, "k m"]:
    """left @ right in one thread.

    NumPy's BLAS wakes threads of its own from 33 x 33 on, which then wait, busily, on the cores that PyTorch's threads
    need: a step at n = 2000 on two cores took 0.136 s instead of 0.022.
    """
    return np.einsum("ij,jk->ik", left, right)


# Rows of a core whose eigenvectors one thread finds about as fast as two: 0.9 ms instead of 0.8 for 128 rows, 4.1
# instead of 3.3 for 256; but 11.4 instead of 8.5 for 400.
_UNSHARED = 256


@contextlib.contextmanager
def unshared(core: Tensor) -> Iterator[None]:
    """One thread for LAPACK on a core on the CPU.

    An eigendecomposition opens about one parallel region for every row, three quarters of those of a whole step. Beside
    other programs each may wait for a thread whose core is taken: milliseconds. The main thread's alone: PyTorch's
    number is also that which new threads start with, and keep.
    """
    threads = torch.get_num_threads()
    as_it_is = threads == 1 or threading.current_thread() is not threading.main_thread()
    if core.device.type != "cpu" or len(core) > _UNSHARED or as_it_is:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _lapack() -> tuple[Any, Any]:
    """potrf and trtri themselves: what scipy.linalg checks and copies around them costs more than a core of 33 columns.
    Imported when first needed, which takes a tenth of a second."""
    from scipy.linalg import get_lapack_funcs

    potrf, trtri = get_lapack_funcs(("potrf", "trtri"), dtype=np.float64)
    return potrf, trtri


class NotPositiveDefiniteError(ValueError):
    """A core is not positive definite, or not finite."""


def cholesky_with_inverse(
    core: Float64[np.ndarray, "k k"],
) -> tuple[Float64[np.ndarray, "k k"], Float64[np.ndarray, "k k"]]:
    """L and L^-1 for core = L L', lower triangular, in one thread: LAPACK for blocks that it does not divide, the rest
    by :func:`product`. O(k^3); 40 microseconds for k = 33.

    :raises NotPositiveDefiniteError: if there is no L.
    """
    k = len(core)
    if k <= _UNDIVIDED:
        potrf, trtri = _lapack()
        factor, info = potrf(core, lower=1)
        if info or not np.isfinite(factor).all():
            raise NotPositiveDefiniteError
        return factor, trtri(factor, lower=1)[0]
    half = k // 2
    factor, inverse = np.zeros_like(core), np.zeros_like(core)
    first, last = slice(0, half), slice(half, k)
    factor[first, first], inverse[first, first] = cholesky_with_inverse(core[first, first])
    below = product(core[last, first], inverse[first, first].T)
    factor[last, first] = below
    factor[last, last], inverse[last, last] = cholesky_with_inverse(core[last, last] - product(below, below.T))
    inverse[last, first] = -product(inverse[last, last], product(below, inverse[first, first]))
    return factor, inverse
