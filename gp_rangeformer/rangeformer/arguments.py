"""Checks of what a RangeFormer is asked: a wrong argument is met where it was written, not as a wrong number."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.rangeformer.operator import MatrixOperator


def batched(rhs: Tensor, operator: MatrixOperator) -> Float[Tensor, "b n m"]:
    """``rhs`` as b x n x m. A single matrix takes a vector or a block as it is.

    :raises ValueError: another shape, integers, NaN or infinity.
    """
    batch, size = operator.batch, operator.size
    block = rhs.unsqueeze(-1) if batch == 1 and rhs.dim() == 1 else rhs
    block = block.unsqueeze(0) if batch == 1 and block.dim() == 2 else block
    if block.dim() != 3 or block.shape[:2] != (batch, size):
        wanted = f"{size}, {size} x m or 1 x {size} x m" if batch == 1 else f"{batch} x {size} x m"
        raise ValueError(
            f"right-hand sides must be {wanted}, as the matrices are {batch} x {size} x {size}: got "
            f"{' x '.join(map(str, rhs.shape)) or 'a scalar'}"
        )
    if not block.is_floating_point():
        raise ValueError(f"right-hand sides must be float32 or float64, got {rhs.dtype}: convert them first")
    if not bool(block.isfinite().all()):
        raise ValueError("right-hand sides hold NaN or infinite entries")
    return block


def check_probes(count: int, rhs: Float[Tensor, "b n m"] | None) -> None:
    """:raises ValueError: unless ``count`` of the right-hand sides, the last, can be random with E zz' = I."""
    most = 0 if rhs is None else rhs.shape[-1]
    if not 0 <= count <= most:
        raise ValueError(f"isotropic must be between 0 and the number of right-hand sides, {most}, got {count}")
    if count and rhs is not None and bool((rhs[..., -count:] == 0).all(-2).any()):
        raise ValueError("a right-hand side that is said to be random with E zz' = I is zero: lower isotropic")


def check_tolerance(tolerance: float | None, rhs: Float[Tensor, "b n m"] | None) -> None:
    """:raises ValueError: unless ``tolerance`` is None, or positive and there are residuals to meet it."""
    if tolerance is None:
        return
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    if rhs is None or not rhs.shape[-1]:
        raise ValueError("tolerance is of the residuals, and there are no right-hand sides: give loops or columns")


def check_floor(floor: Float[Tensor, "*b"] | None, operator: MatrixOperator) -> None:
    """:raises ValueError: unless ``floor`` is None, or a finite number of at least 0 for all matrices or for each."""
    if floor is None:
        return
    if floor.shape not in ((), (operator.batch,)):
        raise ValueError(f"floor must be one number or {operator.batch}, one per matrix, got {tuple(floor.shape)}")
    if not bool((floor.isfinite() & (floor >= 0)).all()):
        raise ValueError(f"floor, a lower bound of positive eigenvalues, must be finite and at least 0, got {floor}")


def check_codes(codes: Float[Tensor, "b n d"], operator: MatrixOperator, columns: int) -> None:
    """:raises ValueError: unless the codes are those of these matrices and of ``columns`` of the embedding."""
    wanted = (operator.batch, operator.size, columns)
    if codes.shape != wanted:
        raise ValueError(f"codes must be {' x '.join(map(str, wanted))}, got {' x '.join(map(str, codes.shape))}")


def check_definite(diagonal: Float64[Tensor, "b n"], ritz: Float64[Tensor, "b k"]) -> None:
    """:raises torch.linalg.LinAlgError: an entry of A's diagonal is negative, or a Ritz value (ascending) is, beyond
    the rounding of products in float32, n eps |A|."""
    rounding = diagonal.shape[-1] * torch.finfo(torch.float32).eps
    least = torch.stack([diagonal.amin(-1), ritz[:, 0] + rounding * ritz[:, -1].clamp_min(0)])
    if bool((least < 0).any()):
        raise torch.linalg.LinAlgError(
            "the matrix is not positive semi-definite: it has a negative entry on its diagonal, or a negative "
            "eigenvalue; what is read off a range holds for covariance matrices alone"
        )
