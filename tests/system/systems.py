"""A small market of systems for the solver tests: kernels on points, and matrices with a chosen spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from gp_rangeformer.system.linear_system import LinearSystem


def points(n: int, d: int, seed: int = 0, duplicates: float = 0.0) -> Tensor:
    """n x d standard normal points, float64; a share ``duplicates`` of them repeats others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    repeated = int(duplicates * n)
    if repeated:
        x[:repeated] = x[torch.randint(repeated, n, (repeated,), generator=generator)]
    return x


def kernel_matrix(x: Tensor, name: str = "matern32", lengthscale: float = 1.0) -> Tensor:
    """A unit-variance kernel matrix, float64, written out here so that no test relies on the code under test."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / lengthscale
    if name == "rbf":
        return torch.exp(-0.5 * distance.square())
    if name == "matern12":
        return torch.exp(-distance)
    if name == "matern32":
        return (1 + 3**0.5 * distance) * torch.exp(-(3**0.5) * distance)
    if name == "rational_quadratic":
        return 1 / (1 + 0.5 * distance.square())
    raise ValueError(name)


def spectrum_matrix(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """Q' diag(eigenvalues) Q with a random orthogonal Q."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (q * eigenvalues) @ q.mT
    return 0.5 * (matrix + matrix.mT)


def system(kernel: Tensor, noise: float | Tensor, dtype: torch.dtype = torch.float64) -> LinearSystem:
    noise = torch.as_tensor(noise, dtype=torch.float64).expand(len(kernel))
    return LinearSystem(kernel.to(dtype), noise.to(dtype))


def targets(n: int, m: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=generator, dtype=torch.float64)
