"""The continuous space of structured matrices: one contraction whose axis lengths select the structure.

Potapczynski et al. 2024, "Searching for efficient linear layers over a continuous space of structured matrices"
(arXiv 2410.02117): with inputs split as (alpha, beta, gamma) and outputs as (delta, epsilon, phi),

    W[delta epsilon phi, alpha beta gamma] = sum_rho  A[alpha gamma delta phi rho]  B[beta gamma epsilon phi rho].

Kronecker: gamma = phi = rho = 1. Two-core tensor train: gamma = phi = 1. Block tensor train: beta = delta = 1.
Monarch: beta = delta = rho = 1. Low rank: only alpha, epsilon and rho are not 1.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float64
from torch import Tensor


def continuous_einsum(
    first: Float64[Tensor, "count alpha gamma delta phi rho"],
    second: Float64[Tensor, "count beta gamma epsilon phi rho"],
) -> Float64[Tensor, "count phi*delta*epsilon gamma*alpha*beta"]:
    """W from its two factors. The axes that both factors share lead, which only permutes the rows and columns:
    block-diagonal factors are then block-diagonal as written. O(rows x columns x rho).
    """
    count, alpha, _, delta, phi, _ = first.shape
    _, beta, gamma, epsilon, _, _ = second.shape
    product = torch.einsum("nagdpr,nbgepr->npdegab", first, second)
    return product.reshape(count, phi * delta * epsilon, gamma * alpha * beta)


@cache
def factorisations(n: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """All ordered ways to write N as a product of ``parts`` integers >= 2, N the smallest number >= n that has one."""
    total = max(n, 2**parts)
    while not (found := _ordered(total, parts)):
        total += 1
    return found


def _ordered(total: int, parts: int) -> tuple[tuple[int, ...], ...]:
    if parts == 1:
        return ((total,),) if total >= 2 else ()
    divisors = [size for size in range(2, total // 2 + 1) if total % size == 0]
    return tuple((size, *rest) for size in divisors for rest in _ordered(total // size, parts - 1))
