"""Stochastic Lanczos quadrature in a range, at no product beside those that made it.

tr f(A) / n is the mean of z' f(A) z / z'z over random z with E zz' = I, and z' f(U T U') z is what the range U knows of
each. Eigenpairs that have converged are known and need no probes: those speak of the complement alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.rangeformer.subspace import GrowingRange

_LEAST = 1e-12  # share of the probes: below is rounding


@dataclass
class Quadrature:
    """Of p probes in a range of k columns, float64."""

    found: Float64[Tensor, "b k"]  # 1 for Ritz pairs that count as eigenpairs, 0 for others
    weights: Float64[Tensor, "b k p"]  # of the Ritz values: shares of a probe's square
    unseen: Float64[Tensor, "b p"]  # the share outside the range

    @classmethod
    def of(
        cls,
        grown: GrowingRange,
        values: Float64[Tensor, "b k"],
        vectors: Float64[Tensor, "b k k"],
        residuals: Float64[Tensor, "b k"],
        probes: Float64[Tensor, "b n p"],
        converged: float,
    ) -> Quadrature:
        """O(n k p).

        :param values: Ritz values, ascending, with ``vectors`` in the basis of the range and lengths of ``residuals``.
        :param converged: largest residual of an eigenpair, in units of its distance from the smallest Ritz value.
        """
        weights = (vectors.mT @ (grown.basis.mT @ probes)).square() / probes.square().sum(-2)[:, None, :]
        found = (residuals <= converged * (values - values[:, :1])).double()
        return cls(found, weights, (1 - weights.sum(-2)).clamp_min(0))

    def mean(
        self, numbers: Float64[Tensor, "b k"], beyond: Float64[Tensor, " b"], size: int
    ) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        """tr f(A) / n for n = ``size``, and its standard error over the probes.

        :param numbers: f of the Ritz values.
        :param beyond: f outside the range, as if what it has not seen of z were an eigenvector.
        """
        others = self.weights * (1 - self.found).unsqueeze(-1)
        share = (others.sum(-2) + self.unseen).mean(-1).clamp_min(_LEAST)
        each = ((others * numbers.unsqueeze(-1)).sum(-2) + self.unseen * beyond.unsqueeze(-1)) / share.unsqueeze(-1)
        complement = (size - self.found.sum(-1)) / size
        error = complement * each.std(-1, correction=0) / each.shape[-1] ** 0.5
        return (self.found * numbers).sum(-1) / size + complement * each.mean(-1), error


def below(
    bound: Float64[Tensor, " b"], estimate: Float64[Tensor, " b"], error: Float64[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """A certain upper bound and an estimate in one number: the gap g between them is believed to g^2 / (g^2 + e^2), e
    the estimate's standard error, for what lies within it may be the draw of the probes."""
    gap = (bound - estimate).clamp_min(0)
    square = gap.square()
    return bound - gap * square / (square + error.square()).clamp_min(torch.finfo(gap.dtype).tiny)
