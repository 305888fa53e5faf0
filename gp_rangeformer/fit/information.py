"""Average information: the curvature of a Gaussian likelihood from solves that a step can afford.

For A = K + D and a = A^-1 (y - m) the second derivative of log p(y) is -a'dA_i A^-1 dA_j a plus half of
tr(A^-1 dA_i A^-1 dA_j) (and a part with second derivatives of A), its expectation minus half of that trace; their
average, the average information (dA_i a)' A^-1 (dA_j a) / 2, needs a solve for every parameter instead of a trace for
every pair (Gilmour, Thompson and Cullis 1995, Biometrics 51). Where a mean m = X beta has been fitted to the other
parameters, A^-1 becomes A^-1 - A^-1 X (X'A^-1 X)^-1 X'A^-1: the curvature of what is left when beta follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gp_rangeformer.fit.columns import Columns, CovarianceColumns
from gp_rangeformer.plugin.observation import Observation


def information(
    observation: Observation, covariance: Columns, mean: Columns, follows: Bool[Tensor, " p"]
) -> Float64[Tensor, "p p"]:
    """The information matrix in nats, positive semi-definite.

    :param covariance: dA_i a for every parameter; zero columns where A does not move.
    :param mean: dm_i, likewise.
    :param follows: the parameters of a mean that is fitted to the others; their rows are zero.
    One rough solve of as many columns as there are parameters.
    """
    moves, shifts = covariance.any(0), mean.any(0)
    both = torch.cat([covariance[:, moves], mean[:, shifts]], 1)
    products = inner_products(observation, both)
    count, size = int(moves.sum()), covariance.shape[1]
    own, others = moves.nonzero().squeeze(1).cpu(), shifts.nonzero().squeeze(1).cpu()
    within, across, inner = products[:count, :count], products[:count, count:], products[count:, count:]
    fitted = follows[others]
    explained = across[:, fitted] @ torch.linalg.pinv(inner[fitted][:, fitted], hermitian=True) @ across[:, fitted].mT
    within = 0.5 * (within - explained)
    others, across, inner = others[~fitted], across[:, ~fitted], inner[~fitted][:, ~fitted]
    if len(others):
        # What is half of the covariance's part once the mean has followed has this for its part beside it.
        within = within + 0.5 * across @ torch.linalg.pinv(inner, hermitian=True) @ across.mT
    matrix = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    matrix[own.unsqueeze(1), own] += within
    matrix[own.unsqueeze(1), others] += across
    matrix[others.unsqueeze(1), own] += across.mT
    matrix[others.unsqueeze(1), others] += inner
    return matrix


def inner_products(observation: Observation, columns: Columns) -> Float64[Tensor, "m m"]:
    """C'A^-1 C, by a rough solve."""
    sizes = columns.norm(dim=0).clamp_min(1e-300)  # float32 would lose what is tiny
    scaled = (columns / sizes).to(observation.rhs.dtype)
    products = scaled.double().mT @ observation.solve(scaled).double()
    return (0.5 * (products + products.mT) * sizes * sizes.unsqueeze(1)).cpu()


@dataclass(frozen=True)
class MeanFit:
    """A mean m + X delta, linear in its parameters, fitted to the others: delta, the solution a that goes with it, what
    the likelihood gains, and what the gradient of all parameters changes by; in nats."""

    delta: Float64[Tensor, " q"]
    solution: Float64[Tensor, "n 1"]
    gain: float
    gradient: Float64[Tensor, " p"]


def fit_mean(observation: Observation, mean: Columns, covariance: CovarianceColumns) -> MeanFit:
    """Generalised least squares for the ``mean``'s columns X. One rough solve of as many, and one pass over pairs of
    points for the gradient: a'dA a changes by (a_new - a)' dA (a_new + a)."""
    a = observation.solution[:, :1].double()
    dtype = observation.rhs.dtype
    sizes = mean.norm(dim=0).clamp_min(1e-300)
    scaled = mean / sizes
    solved = observation.solve(scaled.to(dtype)).double()
    normal = scaled.mT @ solved
    delta = torch.linalg.pinv(0.5 * (normal + normal.mT), hermitian=True) @ (scaled.mT @ a)
    change = -(solved @ delta)
    gain = 0.5 * float(delta.squeeze(1) @ normal @ delta.squeeze(1))
    gradient = 0.5 * (covariance((2 * a + change).squeeze(1)).mT @ change).squeeze(1)
    return MeanFit((delta.squeeze(1) / sizes).cpu(), a + change, gain, gradient.cpu())
