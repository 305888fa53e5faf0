"""Random draws that the families share: normal, uniform and log-uniform numbers, and draws in groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor


def normal(shape: Sequence[int], generator: torch.Generator) -> Float64[Tensor, "*shape"]:
    """Independent N(0, 1) of this shape, float64 on the CPU."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Float64[Tensor, "*shape"]:
    """Independent U[0, 1) of this shape, float64 on the CPU."""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64)


def log_uniform(low: float, high: float, shape: Sequence[int], generator: torch.Generator) -> Float64[Tensor, "*shape"]:
    """Independent numbers in [low, high) whose logarithm is uniform; 0 < low <= high."""
    return low * (high / low) ** uniform(shape, generator)


def integers(low: int, high: int, count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
    """Independent uniform integers in low..high, both ends included."""
    return torch.randint(low, high + 1, (count,), generator=generator)


def first_ones(length: int, ones: Int64[Tensor, " count"]) -> Bool[Tensor, "count length"]:
    """Row i is True in its first ones[i] places: masks that give every batch element its own rank or width."""
    return torch.arange(length) < ones[:, None]


def in_groups(
    choice: Int64[Tensor, " count"], draw: Callable[[int, Int64[Tensor, " k"]], Float64[Tensor, "k ..."]]
) -> Float64[Tensor, "count ..."]:
    """One result per batch element, from one call of ``draw`` per distinct choice.

    ``draw(option, members)`` gets an option and the batch positions that chose it, and returns one result for each of
    them. The loop is over options, at most ``min(count, options)`` rounds, never over batch elements.
    """
    options, sizes = choice.unique(return_counts=True)
    order = choice.argsort(stable=True)
    groups = order.split(sizes.tolist())
    results = torch.cat([draw(option, members) for option, members in zip(options.tolist(), groups, strict=True)])
    return results[order.argsort()]
