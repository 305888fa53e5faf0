"""Between the device of the big matrices and the host, where what is small is decided and computed.

A GPU waits for every number that is read from it, and takes as long to start an operation on 33 x 33 numbers as on a
million. So numbers that decide come over together, and cores of a few dozen rows are LAPACK's, in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor


def to_host(*tensors: Tensor) -> list[NDArray[np.float64]]:
    """The tensors as float64 arrays of their shapes, in one transfer; to be read, not written: on a CPU they may share
    the tensors' memory."""
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    arrived = iter(())
    if away:
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in away]).cpu().double().numpy()
        ends = np.cumsum([tensor.numel() for tensor in away])[:-1]
        arrived = iter([part.reshape(tensor.shape) for part, tensor in zip(np.split(flat, ends), away, strict=True)])
    return [t.detach().double().numpy() if t.device.type == "cpu" else next(arrived) for t in tensors]


def to_device(array: NDArray[np.float64], like: Tensor) -> Tensor:
    """The array in the dtype and on the device of ``like``; nothing waits for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(like.dtype)
    return tensor.to(like.device, non_blocking=True)


def symmetric(core: Float64[np.ndarray, "k k"]) -> Float64[np.ndarray, "k k"]:
    """The symmetric part."""
    return 0.5 * (core + core.T)
