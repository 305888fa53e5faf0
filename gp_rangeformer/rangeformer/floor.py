"""Bounds of log|A| where A >= s I is known: what the range says of A - s I, which is often nearly of its rank."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

_RANK = 1e-12  # of the largest Ritz value: directions below are none of A - s I


def floor_bounds(
    ritz_vectors: Float64[Tensor, "b n k"],
    images: Float64[Tensor, "b n k"],
    values: Float64[Tensor, "b k"],
    diagonal: Float64[Tensor, "b n"],
    floor: Float64[Tensor, " b"],
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """log|P| <= log|A| <= log|P| + sum_i log(1 + (A - P)_ii / s), for P = s I + Q and Q <= A - s I the Nystrom
    approximation of A - s I on the range: |A| / |P| = |I + P^-1/2 (A - P) P^-1/2| <= |I + (A - P) / s|, as P >= s I,
    and Hadamard's inequality. In nats per point; O(n k^2).

    :param ritz_vectors: orthonormal; ``images`` are A times them and ``values`` their Ritz values, ascending.
    :param diagonal: of A.
    :param floor: s > 0.
    """
    n, k = ritz_vectors.shape[-2:]
    shift = floor[:, None]
    excess = values - shift
    inside = excess > _RANK * values[:, -1:]
    scale = torch.where(inside, excess.clamp_min(torch.finfo(excess.dtype).tiny).rsqrt(), 0.0)
    root = (images - shift.unsqueeze(-1) * ritz_vectors) * scale.unsqueeze(-2)  # Q = root root'
    gram = torch.linalg.eigvalsh(root.mT @ root).clamp_min(0)
    lower = ((gram + shift).log().sum(-1) + (n - k) * floor.log()) / n
    left = (diagonal - shift - root.square().sum(-1)).clamp_min(0)
    return lower, lower + (left / shift).log1p().mean(-1)
