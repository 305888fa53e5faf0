"""Closed-form linear algebra inside a proposed range, differentiable: orthonormal bases and Galerkin corrections.

The network proposes columns, these two functions do with them the best that can be done: whatever the columns, the
error of a solve in the norm of A never grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.rangeformer.operator import MatrixOperator

_JITTER = 1e-10  # of float64 Gram matrices of unit columns


def orthonormalise(block: Float[Tensor, "b n r"]) -> Float[Tensor, "b n r"]:
    """Orthonormal columns with the same (nested) spans, by Cholesky QR, twice, in float64. O(n r^2). Differentiable.

    The first time nearly dependent columns come out short; the second time they are made unit vectors of what is left.
    With r > n the surplus columns, which have nothing left, stay short.
    """
    wide = block.double()
    for _ in range(2):
        norm = torch.linalg.vector_norm(wide, dim=-2, keepdim=True)
        wide = wide / norm.clamp_min(torch.finfo(wide.dtype).tiny)
        gram = wide.mT @ wide
        jitter = _JITTER * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky(gram + jitter)
        wide = torch.linalg.solve_triangular(factor.mT, wide, upper=True, left=False)
    return wide.to(block.dtype)


@dataclass
class SolveState:
    """A solution in progress for m right-hand sides: x, r = b - A x, and the last correction p with A p."""

    solution: Float[Tensor, "b n m"]
    residual: Float[Tensor, "b n m"]
    step: Float[Tensor, "b n m"]
    step_image: Float[Tensor, "b n m"]

    @classmethod
    def start(cls, rhs: Float[Tensor, "b n m"]) -> SolveState:
        zero = torch.zeros_like(rhs)
        return cls(zero, rhs, zero, zero)


def galerkin_correction(
    operator: MatrixOperator,
    state: SolveState,
    basis: Float[Tensor, "b n r"],
    image: Float[Tensor, "b n r"],
    scale: Float[Tensor, " b"],
) -> SolveState:
    """The correction in span{basis, r, p} that is best in the norm of A, for each right-hand side.

    With an empty basis this is the conjugate gradient method (locally optimal three-term form); the basis deflates it.
    One product with m columns for A r; A p and A basis are known. O(n (r + m) r) besides.

    :param image: A basis / scale, as the network's loop has computed it.
    """
    b, n, m = state.residual.shape
    length = torch.linalg.vector_norm(state.residual, dim=-2, keepdim=True)
    direction = state.residual / length.clamp_min(torch.finfo(length.dtype).tiny)
    own = torch.stack([direction, state.step], dim=-1)  # b n m 2
    own_image = torch.stack([operator.matmul(direction) / scale[:, None, None], state.step_image], dim=-1)
    columns = torch.cat([basis.unsqueeze(2).expand(b, n, m, -1), own], dim=-1).permute(0, 2, 1, 3).double()
    images = torch.cat([image.unsqueeze(2).expand(b, n, m, -1), own_image], dim=-1).permute(0, 2, 1, 3).double()
    core = columns.mT @ images
    core = 0.5 * (core + core.mT)
    size = core.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-30)
    root = size.rsqrt()
    scaled = root.unsqueeze(-1) * core * root.unsqueeze(-2)
    scaled = scaled + 1e-7 * torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    moment = root.unsqueeze(-1) * (columns.mT @ state.residual.mT.unsqueeze(-1).double())
    factor, failed = torch.linalg.cholesky_ex(scaled)
    # Not positive definite (A is not, or rounding): no correction for that right-hand side.
    usable = (failed == 0)[..., None, None]
    identity = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    factor = torch.where(usable, factor, identity)
    weights = torch.where(usable, root.unsqueeze(-1) * torch.cholesky_solve(moment, factor), 0.0)
    step = (columns @ weights).squeeze(-1).mT.to(state.solution.dtype)
    step_image = (images @ weights).squeeze(-1).mT.to(state.solution.dtype)
    return SolveState(state.solution + step, state.residual - step_image, step, step_image)
