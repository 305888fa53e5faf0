"""Predictive variances of f at many points, by a factor or by certified solves, in float64 and never negative."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.kernels.tiles import spans
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.predictive_covariances import variance_solve

_AT_ONCE = 32  # columns of a certified solve


@dataclass(frozen=True)
class Variances:
    """Of f at t points. ``standard_error``: over the choice of probes, 0 of what has none; ``upper``: what the variance
    is at most, certainly but for rounding; ``error``: the largest certified error, relative to the variance of an
    observation, where one is known. ``neighbours``: how many points each was conditioned on, if estimated."""

    value: Float64[Tensor, " t"]
    standard_error: Float64[Tensor, " t"]
    upper: Float64[Tensor, " t"]
    error: float | None = None
    neighbours: int | None = None

    def relative_error(self, noise: float) -> float:
        """Root mean square of the standard errors, relative to the variance of an observation."""
        return float((self.standard_error / (self.value + noise)).square().mean().sqrt())

    def excess(self, noise: float) -> float:
        """How far the upper bound is above the value, on average, relative to the variance of an observation."""
        return float(((self.upper - self.value) / (self.value + noise)).mean())


def evenly_spread(total: int, most: int, device: torch.device) -> Int64[Tensor, " c"]:
    """At most so many of the numbers below ``total``: a sample of points in the order that they have."""
    return torch.linspace(0, total - 1, min(most, total), device=device).round().long()


def joined(parts: list[Variances]) -> Variances:
    """Of all the points of ``parts``, which were made alike."""
    if len(parts) == 1:
        return parts[0]
    errors = [part.error for part in parts if part.error is not None]
    return Variances(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("value", "standard_error", "upper")),
        error=max(errors) if errors else None,
        neighbours=parts[0].neighbours,
    )


def exact_variances(cross: CrossKernel, factor: Float[Tensor, "n n"]) -> Variances:
    """k** - |L^-1 b|^2 of a Cholesky factor L, which may be of a higher precision than K. n^2 t flops."""
    prior = cross.prior().double()
    value = torch.empty(cross.t, dtype=torch.float64, device=cross.device)
    for others, strip in cross.strips():
        half = torch.linalg.solve_triangular(factor, strip.mT.to(factor.dtype), upper=False)
        value[others] = (prior - half.square().sum(0).double()).clamp_min(0)
    return Variances(value, torch.zeros_like(value), value)


def certified_variances(
    prepared: CertifiedPrepared, cross: CrossKernel, factor: Float[Tensor, "n n"] | None = None
) -> Variances | None:
    """By solves, 32 columns at a time, of the middle of each interval; ``error`` is half of the widest, infinite where
    there is no noise. None where a solve does not certify. See
    :func:`~gp_rangeformer.solvers.predictive_covariances.variance_solve`, also for ``factor``."""
    prior, noise = float(cross.prior()), prepared.system.diagonal_facts.smallest_noise
    intervals = []
    everything = torch.arange(cross.t, device=cross.device)
    for piece in spans(0, cross.t, _AT_ONCE):
        columns = cross.of_some(everything[piece]).dense().mT
        found = variance_solve(prepared, columns, prior, factor)
        if found is None:
            return None
        intervals += found
    ends = torch.tensor([(interval.lower, interval.upper) for interval in intervals], dtype=torch.float64, device="cpu")
    lower, upper = ends.clamp_min(0).unbind(1)
    error = float(((upper - lower) / (lower + noise)).max()) / 2 if noise > 0 else math.inf
    value = ((lower + upper) / 2).to(cross.device)
    return Variances(value, torch.zeros_like(value), upper.to(cross.device), error)
