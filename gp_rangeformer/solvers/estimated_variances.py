"""Predictive variances of many points: certain bounds from neighbours, and an estimate of what these leave.

With x the weights of the landmarks and a point's nearest neighbours, and r = b - A x what they leave of its column b,

    b' A^-1 b = 2 b'x - x'Ax + r' A^-1 r,

exactly. Without the last term the variance k** - b' A^-1 b is the one given these points alone, which no further point
makes larger: a bound from above. The last term is estimated from pairs u, v of vectors with mean u v' = A^-1, solved
once per model: r'u and r'v are products with b and x alone. Its relative error is (2 / pairs)^1/2 of a small part.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.kernels.native.neighbours import MOST_NEIGHBOURS
from gp_rangeformer.kernels.tiles import spans
from gp_rangeformer.preconditioner.further_points import (
    ConditionalImages,
    FurtherPoints,
    condition_further,
    enough_neighbours,
)
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.solvers.probes import InversePairs
from gp_rangeformer.solvers.variances import Variances, evenly_spread, joined

SAMPLE = 256  # points that say how many neighbours are needed
_AT_ONCE = 8192  # points conditioned together: the memory of their neighbours and weights


class EstimatedVariances:
    """What is solved once per model.

    :param noise: the diagonal of D, n.
    """

    def __init__(self, vecchia: VecchiaPreconditioner, noise: Float[Tensor, " n"], pairs: InversePairs) -> None:
        self._vecchia, self._noise, self._pairs = vecchia, noise, pairs
        self._images = ConditionalImages.of(vecchia, pairs.images)

    def of(self, cross: CrossKernel, allowed: float) -> Variances:
        """The variances of f at the others of ``cross``. t n entries of K twice, 2 n s flops a point for s vectors, and
        O(r^2 + k^2 (r + D) + k^3) for k neighbours.

        :param allowed: root mean square of the standard errors, relative to the variance of an observation; so many
            neighbours are taken, up to 255, as a sample of the points says.
        """
        noise = float(self._noise.amin())
        sample = cross.of_some(evenly_spread(cross.t, SAMPLE, cross.device))

        def error_with(count: int) -> float:
            return self._with_neighbours(sample, count).relative_error(noise)

        return self._with_neighbours(cross, enough_neighbours(error_with, allowed, MOST_NEIGHBOURS))

    def _with_neighbours(self, cross: CrossKernel, count: int) -> Variances:
        pieces = spans(0, cross.t, _AT_ONCE)
        everything = torch.arange(cross.t, device=cross.device)
        found = []
        for piece in pieces:
            part = cross if len(pieces) == 1 else cross.of_some(everything[piece])
            further = condition_further(part, self._vecchia, self._noise, self._noise.amin(), count)
            found.append(self._estimate(further, self._products(part), count))
        return joined(found)

    def _products(self, cross: CrossKernel) -> Float[Tensor, "t s2"]:
        vectors = self._pairs.vectors
        return cross.widened().product(vectors.double()) if self._pairs.wide else cross.product(vectors)

    def _estimate(self, further: FurtherPoints, products: Float[Tensor, "t s2"], count: int) -> Variances:
        gain, error = self._pairs.quadratic_forms(products - further.weighted(self._images))
        upper = (further.variances - self._noise.amin().double()).clamp_min(0)
        return Variances(upper - gain.minimum(upper), error, upper, neighbours=count)
