"""The n x n weight W with d(loss) = sum(W * dK), kept as thin factors until autograd asks for it.

d(b'A^-1 b) = -x' dA x with x = A^-1 b, and d log|A| = tr(A^-1 dA), estimated from Rademacher probes z by the mean of
(A^-1 z)' dA z. Where P is so close to A that almost nothing is left to estimate, P^-1 serves as control variate:
tr(A^-1 dA) = tr(P^-1 dA) + tr((A^-1 - P^-1) dA), the first term exact and the second from the probes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int, Int32
from torch import Tensor

from gp_rangeformer.kernels.conditional_weight import ConditionalWeight
from gp_rangeformer.kernels.contract import ThinWeight
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner

# The mean of diag(D^-1 (K - Q)) below which the control variate helps. Measured ratio of gradient errors with and
# without it, 32 probes, n = 1000: 1e-4 at a gap of 1e-5, 0.015 at 0.007, 0.15 at 0.065, 0.5 at 0.07 to 0.2, 1.3 to 1.6
# at 0.45 to 0.65, 15 at 5: its 1/noise acts on the whole complement of the range. With the level there matched to the
# probes' own trace instead of 1/noise: 0.6 to 0.8 at 0.7, 1.0 at 1.2, 1.4 to 2 at 4 to 8 (n = 1500), not better where
# the gradient is hardest.
CONTROL_GAP = 0.1


@dataclass(frozen=True)
class GradientWeight:
    """Solutions and probes of one training step. ``inverse`` is P^-1's factor U, P^-1 = D^-1 - U U', or None."""

    solutions: Float[Tensor, "n m"]
    probes: Float[Tensor, "n p"]
    probe_solutions: Float[Tensor, "n p"]
    noise: Float[Tensor, " n"]
    inverse: Float[Tensor, "n r"] | None

    @classmethod
    def build(
        cls,
        preconditioner: NystromPreconditioner,
        noise: Float[Tensor, " n"],
        solutions: Float[Tensor, "n m"],
        probes: Float[Tensor, "n p"],
        probe_solutions: Float[Tensor, "n p"],
    ) -> GradientWeight:
        """Decide about the control variate by the preconditioner's gap. O(n r p) if it is used."""
        inverse = None
        if probes.shape[1] and preconditioner.facts.mean_gap < CONTROL_GAP:
            inverse = preconditioner.inverse_factor()
            probe_solutions = probe_solutions - preconditioner.solve(probes)
        return cls(solutions, probes, probe_solutions, noise, inverse)

    def control(self) -> ThinWeight | None:
        """P^-1, where it is the control variate."""
        if self.inverse is None:
            return None
        return ThinWeight(-self.inverse, self.inverse, 1 / self.noise)

    def control_shares(self) -> Float[Tensor, " p"]:
        """How much of P^-1 is added to each probe's own estimate, besides P^-1 itself."""
        return self.noise.new_zeros(self.probes.shape[1])

    def control_trace(self, noise: Float[Tensor, " n"]) -> float:
        """tr(D P^-1) of it; 0 without one. tr(D P^-1) = n - tr(D U U')."""
        if self.inverse is None:
            return 0.0
        return len(noise) - float((self.inverse.double().square() * noise.double().unsqueeze(-1)).sum())

    def dense(self, g_inv_quad: Float[Tensor, " m"], g_logdet: Float[Tensor, ""]) -> Float[Tensor, "n n"]:
        """W for loss = sum_j g_inv_quad[j] b_j'A^-1 b_j + g_logdet log|A|. 2 n^2 (m + p + r) flops."""
        return self.thin(g_inv_quad, g_logdet).symmetric()

    def thin(self, g_inv_quad: Float[Tensor, " m"], g_logdet: Float[Tensor, ""]) -> ThinWeight:
        """W in factors of m + p + r columns. O(n (m + p + r))."""
        left = [-g_inv_quad * self.solutions, (g_logdet / max(self.probes.shape[1], 1)) * self.probe_solutions]
        right = [self.solutions, self.probes]
        if self.inverse is not None:
            left.append(-g_logdet * self.inverse)
            right.append(self.inverse)
        diagonal = None if self.inverse is None else g_logdet / self.noise
        return ThinWeight(torch.cat(left, dim=1), torch.cat(right, dim=1), diagonal)


@dataclass(frozen=True)
class WhitenedWeight(GradientWeight):
    """The same from probes z in whitened coordinates, W' W = P^-1 of a Vecchia preconditioner, W A W' = M:

    tr(A^-1 dA) = tr(P^-1 dA) + E[(W'(M^-1 - I) z)' dA W'z]. ``probes``: W'z; ``probe_solutions``: A^-1 W^-1 z - W'z.
    The first term is exact, and M is near the identity wherever conditioning on neighbours is good, however small the
    noise. ``excess``: z'Mz / n - 1, by which the estimate of tr(A^-1 A) = n misses to first order: all of it is scaled
    by 1 / (1 - mean excess), which makes the scale of K as well known as the noise. The other fields as in
    :class:`~gp_rangeformer.kernels.conditional_weight.ConditionalWeight`.
    """

    landmarks: Int[Tensor, " r"]
    order: Int[Tensor, " rest"]
    neighbours: Int32[Tensor, "rest k"]
    rows: Float[Tensor, "rest k1"]
    columns: Float[Tensor, "n r"]
    diagonal: Float[Tensor, " n"]
    excess: Float[Tensor, " p"]

    @classmethod
    def of_vecchia(
        cls,
        vecchia: VecchiaPreconditioner,
        noise: Float[Tensor, " n"],
        solutions: Float[Tensor, "n m"],
        probes: Float[Tensor, "n p"],
        probe_solutions: Float[Tensor, "n p"],
        excess: Float[Tensor, " p"],
    ) -> WhitenedWeight:
        """O(n k r)."""
        columns = vecchia.inverse_columns()
        # What the memory has from a step in inference mode autograd would not save.
        remembered = vecchia.landmarks, vecchia.order, vecchia.pattern.neighbours
        landmarks, order, near = [part.clone() if part.is_inference() else part for part in remembered]
        rows, diagonal = vecchia.conditionals, vecchia.inverse_diagonal(columns)
        of_inverse = landmarks, order, near, rows, columns, diagonal
        return cls(solutions, probes, probe_solutions, noise, None, *of_inverse, excess)

    def _conditional(self, scale: Float[Tensor, ""]) -> ConditionalWeight:
        parts = self.landmarks, self.order, self.neighbours, self.rows, self.columns, self.diagonal
        return ConditionalWeight(*parts, scale)

    def control(self) -> ThinWeight:
        """P^-1."""
        nothing = self.solutions[:, :0]
        return ThinWeight(nothing, nothing, None, self._conditional(self.noise.new_ones(())))

    def control_trace(self, noise: Float[Tensor, " n"]) -> float:
        """tr(D P^-1)."""
        return float((self.diagonal.double() * noise.double()).sum())

    def thin(self, g_inv_quad: Float[Tensor, " m"], g_logdet: Float[Tensor, ""]) -> ThinWeight:
        """W in factors of m + p columns, and what is on neighbourhoods. O(n (m + p))."""
        scaled = g_logdet / (1 - self.excess.mean().clamp(-0.5, 0.5))
        return replace(super().thin(g_inv_quad, scaled), conditional=self._conditional(scaled))

    def control_shares(self) -> Float[Tensor, " p"]:
        """Each probe's own excess: what its estimate misses is about as much of P^-1."""
        return self.excess


@runtime_checkable
class GradientCheck(Protocol):
    """Measures how well a step's gradient is known."""

    def due(self, probes: Float64[Tensor, " p"], quadratic: float) -> bool:
        """Whether to measure this step. ``probes``: their quadratic forms z' A^-1 z; ``quadratic``: y' A^-1 y."""
        ...

    def __call__(self, weight: GradientWeight, quadratic: float) -> float:
        """The standard error of the gradient over what is allowed. ``quadratic``: y' A^-1 y."""
        ...
