"""What sums may err by: bounds that hold for every processor, library and order of summation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STRETCH = 256  # numbers that native/product.cpp sums before they join the total


def of_sum(count: int, dtype: torch.dtype, stretch: int | None = None) -> float:
    """The error of a sum of ``count`` rounded products, relative to the sum of their sizes: m u / (1 - m u), m the
    roundings that one of them goes through (Higham 2002, section 3.1). In any order at most its own and count - 1
    additions; summed in stretches first, those of a stretch and of the stretches. Fused or not."""
    additions = count if stretch is None else min(count, stretch) + -(-count // stretch)
    u = torch.finfo(dtype).eps / 2
    return (1 + additions) * u / (1 - (1 + additions) * u)


def exact_product(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, float]:
    """matrix @ vectors and |matrix| @ |vectors|, and what the first errs by relative to the second: nothing to speak of
    where NumPy's long double is longer than a double."""
    left, right = (operand.numpy().astype(np.longdouble) for operand in (matrix, vectors))
    product, sizes = left @ right, np.abs(left) @ np.abs(right)
    own = (1 + matrix.shape[1]) * float(np.finfo(np.longdouble).eps) + 2.0**-53  # the last: its conversion
    return torch.from_numpy(product.astype(np.float64)), torch.from_numpy(sizes.astype(np.float64)), own
