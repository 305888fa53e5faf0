"""The exact path: one Cholesky factorisation, and the closed-form gradient from A^-1.

GPyTorch differentiates *through* the factorisation; the closed form d log|A| = tr(A^-1 dA),
d(y' A^-1 y) = -(A^-1 y)' dA (A^-1 y) needs one factorisation and one inverse instead. This path answers below the
measured crossover and whenever a certificate does not close above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.allocation.free_memory import InsufficientMemoryError
from gp_rangeformer.preconditioner.certificate import FEW_COLUMNS, relative, wide_residual
from gp_rangeformer.preconditioner.residual_error import residual_error
from gp_rangeformer.solvers.appended import appended_factor
from gp_rangeformer.solvers.arguments import check_share
from gp_rangeformer.solvers.factorisation import (
    ROOT_MATRICES,
    exact_path_fits,
    factorised,
    factorised_with_jitter,
    lacking_for,
    solve_by_factor,
)
from gp_rangeformer.system.answers import Evaluation, Interval, InverseRoot, LogDet, Solution
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.margins import factor_rounding, with_second_order
from gp_rangeformer.system.reason import Reason
from gp_rangeformer.system.small_cores import to_host


@dataclass(frozen=True)
class Exact:
    """Cholesky with the host's jitter policy. O(n^3 / 3) to prepare, n^2 memory for the factor.

    :param tolerance: relative residual a solution must certify. A float32 factorisation that cannot is repeated in
        float64 (twice the time and memory of the factor), before any jitter is added.
    :param prediction_tolerance: the same for solves outside the likelihood.
    :raises ValueError: at construction, naming the argument and what it may be.
    """

    tolerance: float = 0.01
    prediction_tolerance: float = 0.001

    def __post_init__(self) -> None:
        check_share(self, "tolerance")
        check_share(self, "prediction_tolerance")

    @property
    def for_predictions(self) -> Exact:
        return replace(self, tolerance=self.prediction_tolerance)

    @property
    def thin_columns(self) -> int:
        """n-vectors that a system holds beside K and its factor, about."""
        return 4

    def prepare(self, system: LinearSystem, memory: object = None) -> ExactPrepared:
        """Factorise. ``memory`` is accepted for the common signature and not used.

        :raises NanError: K or D holds NaN or infinity.
        :raises NotPSDError: A is not positive definite even with the host's largest jitter.
        :raises InsufficientMemoryError: the dense matrix and its factor do not fit.
        """
        del memory
        dtype = self._dtype(system)
        factor, jitter = factorised(system, dtype), 0.0
        if factor is None and dtype == torch.float32:
            # The host would add jitter here; float64 first, because jitter changes the answer.
            factor = factorised(system, torch.float64)
        if factor is None:
            factor, jitter = factorised_with_jitter(system, torch.float64)
        return ExactPrepared(system, factor, jitter, self.tolerance)

    def append(self, system: LinearSystem, factor: Float[Tensor, "k k"]) -> ExactPrepared | None:
        """The same from a factor of the first k rows and columns, to which the others are appended: k^2 (n - k)
        multiplications. None where that factor is not precise enough, or there is no room for a second one.

        :param factor: without jitter. See :func:`~gp_rangeformer.solvers.appended.appended_factor`.
        """
        precise = factor.dtype == torch.float64 or self._dtype(system) == torch.float32
        if not precise or not exact_path_fits(system, 1, factor.dtype):
            return None
        found = appended_factor(system, factor)
        return None if found is None else ExactPrepared(system, found, 0.0, self.tolerance, appended=True)

    def _dtype(self, system: LinearSystem) -> torch.dtype:
        """Of a factor."""
        dtype = system.dtype
        if dtype == torch.float32 and factor_rounding(system.size, dtype, system.condition) > 0.1 * self.tolerance:
            return torch.float64
        return dtype


_INVERSE_ITERATIONS = 8
# Columns of float32 systems whose residual is summed in float64: a twentieth of a factorisation and its solves.
_SUMMED_WIDE = 40
FACTORISED_IN_FLOAT64, JITTER = "factorised in float64", "jitter"  # a note, and how one begins


@dataclass(frozen=True)
class ExactWeight:
    """The gradient's weight from the factor: a :class:`~gp_rangeformer.system.answers.Weight` without thin factors, of
    one system or of a batch of them.

    ``factor``: None where log|A| was not asked for.
    """

    factor: Float[Tensor, "*batch n n"] | None
    solutions: Float[Tensor, "*batch n m"]

    def thin(self, g_inv_quad: Float[Tensor, "*batch m"], g_logdet: Float[Tensor, "*batch"]) -> None:
        """A^-1 has full rank."""

    def dense(
        self, g_inv_quad: Float[Tensor, "*batch m"], g_logdet: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch n n"]:
        """g_logdet A^-1 - sum_j g_inv_quad[j] x_j x_j'. 2 n^3 / 3 flops, unless log|A| was not asked for."""
        outer = self.solutions * -g_inv_quad.unsqueeze(-2)
        if self.factor is None or not bool((g_logdet != 0).any()):
            return outer @ self.solutions.mT
        weight = torch.cholesky_inverse(self.factor).to(self.solutions.dtype).mul_(g_logdet[..., None, None])
        if weight.dim() == 2:
            return weight.addmm_(outer, self.solutions.mT)
        return weight.baddbmm_(outer, self.solutions.mT)


@dataclass
class ExactPrepared:
    """A factorised system. ``factor`` may be float64 for a float32 system; answers come in the system's dtype."""

    system: LinearSystem
    factor: Float[Tensor, "n n"]
    jitter: float
    tolerance: float = 0.01
    appended: bool = False  # to a factor that was there: K was not formed
    unheld: float = 0.0  # largest relative residual beyond the tolerance that rounding a solution has left

    @property
    def exact(self) -> ExactPrepared:
        return self

    def notes(self) -> list[str]:
        """What a reader of the report should know: a promotion to float64, jitter, what float32 cannot hold."""
        notes = []
        if self.factor.dtype != self.system.dtype:
            notes.append(FACTORISED_IN_FLOAT64)
        if not self.system.held_dense and not self.appended:
            notes.append("the exact path formed K as a dense matrix")
        if self.jitter:
            notes.append(f"{JITTER} {self.jitter:.0e} added to the diagonal")
        # Where K itself is known to less than its dtype holds, the solution is not what is at fault.
        exact_entries = self.system.entry_error <= torch.finfo(self.system.dtype).eps
        if self.unheld and not self.jitter and exact_entries:
            dtype = str(self.system.dtype).removeprefix("torch.")
            notes.append(
                f"the exact solution, rounded to {dtype}, leaves a residual of {self.unheld:.1g}: float64 helps"
            )
        return notes

    def solve(self, rhs: Float[Tensor, "n m"]) -> Solution:
        """A^-1 rhs by two triangular solves, and one pass over K for the residual. O(n^2 m)."""
        found, left = self._solve_once(rhs)
        if self.factor.dtype == torch.float32 and left > self.tolerance:
            promoted = factorised(self.system, torch.float64)
            if promoted is not None:
                self.factor = promoted
                found, left = self._solve_once(rhs)
        # Nothing is left to try: that the dtype of the answer cannot hold it better is said in a note.
        if not left <= self.tolerance:
            self.unheld = max(self.unheld, left)
            return replace(found, reason=Reason.ROUNDING)
        return found

    def _solve_once(self, rhs: Float[Tensor, "n m"]) -> tuple[Solution, float]:
        """The solution, and what its largest relative residual probably is: the one that it states counts also what
        rounding may hide where the signs of a solution are not random, which no other factor would change."""
        system = self.system
        unrounded = solve_by_factor(self.factor, rhs.to(self.factor.dtype))
        value = unrounded.to(system.dtype)
        # Of the answer, as rounded to the system's dtype, also for a float64 factor.
        few = rhs.shape[1] <= (_SUMMED_WIDE if system.dtype == torch.float32 else FEW_COLUMNS)
        residual = wide_residual(system, rhs, value) if few else rhs - system.matmul(value)
        left, norm, length, inner, correction = to_host(
            torch.linalg.vector_norm(residual, dim=0, dtype=torch.float64),
            torch.linalg.vector_norm(rhs, dim=0, dtype=torch.float64),
            torch.linalg.vector_norm(value, dim=0, dtype=torch.float64),
            (rhs.double() * unrounded).sum(0),
            ((residual.double() - self.jitter * value.double()) * value.double()).sum(0),
        )
        summed_wide = residual.dtype != system.dtype
        probable = left + (system.entry_scale if summed_wide else system.rounding_scale) * length
        error = probable if summed_wide else left + residual_error(system, rhs, value, residual)
        error = error + system.skew_norms(value, lambda: rhs - residual, error)
        room = system.quadratic_margin(length**2)
        if self.factor.dtype == torch.float64:
            # b'x of an x that solves a system next to A, off by eps64 n A_ii in every entry: part of the margin.
            quadratic = inner
        else:
            # b' A^-1 b = b'x + r'x + r' A^-1 r with |r'x| <= |r| |x| and r' A^-1 r <= |r|^2 / min noise.
            quadratic = inner + correction if few else inner
            with np.errstate(divide="ignore", invalid="ignore"):  # zero noise proves nothing
                room = room + error**2 / system.diagonal_facts.smallest_noise
            if not few:
                room = room + error * length
        ends = zip((quadratic - room).tolist(), (quadratic + room).tolist(), strict=True)
        intervals = [Interval(low, high) for low, high in ends]
        found = Solution(
            value,
            relative(error, norm),
            torch.from_numpy(quadratic),
            intervals,
            iterations=0,
            passes=1,
            reason=Reason.CONVERGED,
        )
        return found, float(relative(probable, norm).max()) if len(norm) else 0.0

    def logdet(self) -> LogDet:
        """2 sum log diag(L), with what the rounding of K's entries and of the factorisation may change: no further
        cost, except where there is no noise."""
        value = 2 * float(self.factor.diagonal().double().log().sum())
        system = self.system
        margin = system.logdet_margin() + system.size * factor_rounding(
            system.size, self.factor.dtype, system.condition
        )
        if not math.isfinite(margin):
            # Without noise the smallest eigenvalue takes its place.
            eps = torch.finfo(system.dtype).eps + system.size**0.5 * torch.finfo(self.factor.dtype).eps
            condition = system.diagonal_facts.largest_total / self._smallest_eigenvalue()
            margin = with_second_order(system.size * eps * condition)
        return LogDet(value, Interval(value - margin, value + margin))

    def _smallest_eigenvalue(self) -> float:
        """Half of what inverse iteration finds, which is never too small. O(n^2)."""
        vector = torch.linspace(1, 2, self.system.size, dtype=self.factor.dtype, device=self.factor.device)
        vector = (vector * 12.9898).sin().unsqueeze(-1)  # no direction of its own
        for _ in range(_INVERSE_ITERATIONS):
            vector = solve_by_factor(self.factor, vector / torch.linalg.vector_norm(vector))
        return 0.5 / float(torch.linalg.vector_norm(vector))

    def inv_root(self) -> InverseRoot:
        """L^-T: an exact, dense and upper triangular root of A^-1. O(n^3 / 3).

        :raises InsufficientMemoryError: if it does not fit.
        """
        lacking = lacking_for(self.system, self.factor.dtype, ROOT_MATRICES)
        if lacking is not None:
            raise InsufficientMemoryError(
                f"an exact root of the inverse of n = {self.system.size} does not fit on {self.system.device} "
                f"({lacking}): predict without gpytorch.settings.fast_pred_var, or raise rank or "
                "tolerance in settings.solver so that a low-rank root serves"
            )
        identity = torch.eye(self.system.size, dtype=self.factor.dtype, device=self.factor.device)
        inverse = torch.linalg.solve_triangular(self.factor, identity, upper=False)
        return InverseRoot(inverse.mT.to(self.system.dtype), error=0.0, passes=0, reason=Reason.CONVERGED)

    def evaluate(self, rhs: Float[Tensor, "n m"], with_logdet: bool = True) -> Evaluation:
        solution = self.solve(rhs)
        return Evaluation(
            solution=solution,
            logdet=self.logdet() if with_logdet else None,
            weight=ExactWeight(self.factor if with_logdet else None, solution.value),
            inv_quad=solution.quadratic.to(rhs),
            residual=float(solution.residual.max()) if rhs.shape[1] else 0.0,
        )
